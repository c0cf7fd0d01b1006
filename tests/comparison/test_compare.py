"""Compare: arms under equal conditions, one table, one grid; a second call trains nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdxl_ray.config.experiment import load_experiment, names
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import ALL_SUBJECTS
from sdxl_ray.training.run_directory import open_run, scan_images
from tests.conftest import Cli, Here

QUICK = (
    "parallel.engine=local",
    "parallel.workers=1",
    "optim.steps=3",
    "optim.warmup_steps=0",
    "checkpoint.every=3",
    "evaluation.every=0",
    "evaluation.num_inference_steps=2",
    "data.resolution=32",
)


@pytest.mark.slow
def test_the_demo_lays_three_arms_side_by_side(cli: Cli, here: Here, tmp_path: Path) -> None:
    prior = ("data.prior.num_class_images=4", "data.prior.num_inference_steps=2")
    experiment = tmp_path / "three.yaml"
    arms = {"lora": "tiny_lora", "dreambooth": "tiny_dreambooth", "dreambooth_lora": "tiny_dreambooth_lora"}
    settings = {f"data.prior.{k}": int(v) for k, v in (p.removeprefix("data.prior.").split("=") for p in prior)}
    experiment.write_text(
        json.dumps(
            {
                "extends": "demo",
                "prompts": "two.txt",
                "seeds": 2,
                "class_images": 2,
                "steps": [2, 4],
                "load": {"rates": [8], "queries": 4, "warmup": 1},
                "arms": {
                    arm: {"recipe": recipe, "settings": settings if "dreambooth" in arm else {}}
                    for arm, recipe in arms.items()
                },
            }
        )
    )
    (tmp_path / "two.txt").write_text("a photo of {a_subject}\na photo of {a_subject} in a forest\n")
    first = cli("compare", "three.yaml", *QUICK, "--json")
    assert first.returncode == 0, first.stderr
    reported = json.loads(first.stdout)
    rows = reported["arms"]
    assert [row["arm"] for row in rows] == list(arms)
    trainable = {row["arm"]: row["trainable"] for row in rows}
    assert trainable["dreambooth"] == 5_337_956  # every weight of UNet and text encoders that conditioning reaches
    assert trainable["lora"] == 50_176  # rank 4 on the UNet's attention
    assert trainable["dreambooth_lora"] == 2 * trainable["lora"] + 28_672  # rank 8, and both text encoders
    assert all(row["file_bytes"] > 0 and row["peak_bytes"] > 0 and row["loss_before"] for row in rows)
    with Image.open(tmp_path / "runs" / "three-comparison" / "grid.png") as image:
        pixels = image.convert("RGB").getcolors(2**24)
    assert pixels is not None
    assert len(pixels) > 100

    scored = {(row["model"], row["metric"]): row for row in reported["scores"]}
    for model in ("base", *arms):
        for metric in ("dino_i", "clip_t", "pres", "div"):
            row = scored[model, metric]
            assert row["low"] <= row["value"] <= row["high"]
    assert ("real", "dino_i") in scored
    assert ("lora", "dino_i_gain") in scored
    report = Path(reported["report"]).read_text()
    assert "<svg" in report
    assert "data:image/" in report
    assert json.loads((tmp_path / "runs" / "three-comparison" / "report.json").read_text())["arms"].keys() == set(arms)

    code, out, err = here("compare", "three.yaml", *QUICK, "--json")
    assert code == 0, err
    assert json.loads(out)["arms"] == rows
    assert json.loads(out)["scores"][0]["value"] == reported["scores"][0]["value"]
    assert "training" not in err


def test_shipped_experiments_hold_complete_recipes() -> None:
    assert names() == ["curves", "demo", "photos", "study"]
    for name in names():
        assert load_experiment(name).runs({})


def _ordinary(**changes: Any) -> dict[str, Any]:
    settings = {"data.images": "subject:robot", "data.subject": "sks robot", "parallel.engine": "local",
                "parallel.workers": 1}  # fmt: skip
    return {"settings": settings | changes.pop("settings", {}), "arms": {"a": {"recipe": "tiny_lora"}}, **changes}


def _merged(merge: dict[str, Any], arm: str = "a", recipe: str = "tiny_lora", **changes: Any) -> dict[str, Any]:
    return _ordinary(arms={arm: {"recipe": recipe}, "m": {"merge": merge}}, **changes)


@pytest.mark.parametrize(
    ("experiment", "line"),
    [
        (
            "arms:\n  a: {recipe: tiny_lora}\n  b: {recipe: tiny_lora}\n  a: {recipe: tiny_dreambooth}",
            "'a' stands twice",
        ),
        (
            _ordinary(arms={"a": {"recipe": "tiny_lroa"}}),
            "arm 'a': no recipe named 'tiny_lroa': did you mean 'tiny_lora'",
        ),
        (_ordinary(prompts="empty.txt"), "'empty.txt' is empty"),
        (_ordinary(prompts="nowhere.txt"), "nowhere.txt"),
        (_ordinary(prompts="tinny"), "did you mean 'tiny'"),
        (_ordinary(other="nowhere"), "nowhere' does not exist"),
        (_ordinary(other="subject:robot"), "is a photo of the subject too"),
        (_ordinary(settings={"data.validation": "subject:robot"}), "is also trained on"),
        (
            _ordinary(
                settings={"data.validation": "subject:robot/held_out"},
                arms={
                    "a": {"recipe": "tiny_lora"},
                    "b": {
                        "recipe": "tiny_lora",
                        "settings": {"data.images": "subject:robot/held_out", "data.validation": None},
                    },
                },
            ),
            "arm 'a', data.validation: photo '0.png' is one that 'b' was trained on",
        ),
        (
            _ordinary(settings={"evaluation.every": 0, "evaluation.identity": "nowhere/at-all"}),
            "evaluation.identity 'nowhere/at-all'",
        ),
        (
            _ordinary(
                arms={
                    "a": {"recipe": "tiny_lora"},
                    "b": {"recipe": "tiny_lora", "settings": {"evaluation.clip": "clip-vit-b32"}},
                }
            ),
            "evaluation.clip is the default in arm 'a', clip-vit-b32 in arm 'b': all are judged by one encoder",
        ),
        (
            _ordinary(
                subjects={name: {"settings": {"data.images": "subject:robot"}} for name in ("x-y", "y")},
                arms={"a": {"recipe": "tiny_lora"}, "a-x": {"recipe": "tiny_lora"}},
            ),
            "arm 'a-x' on 'y' would have the folder of arm 'a' on 'x-y'",
        ),
        (_ordinary(arms={"comparison": {"recipe": "tiny_lora"}}), "would have the folder of the comparison itself"),
        (_ordinary(settings={"data.limit": 9}), "data.limit = 9: there are only 4 images"),
        (_ordinary(arms={"base": {"recipe": "tiny_lora"}}), "an arm cannot be called 'base'"),
        (_ordinary(arms={"../a": {"recipe": "tiny_lora"}}), "'../a'"),
        (_ordinary(steps=[4, 4]), "the same number twice"),
        (_ordinary(training_seeds=[-1]), "training_seeds.0 = -1"),
        (_ordinary(subjects={"frog": {"settings": {}}}), "subjects.frog.settings"),
        (
            _ordinary(subjects={"frog": {"settings": {"data.imges": "x"}}}),
            "arm 'a', subject 'frog': recipe: no setting 'data.imges'",
        ),
        (_ordinary(subjets={}), "did you mean 'subjects'"),
        (
            _merged({"sources": {"b": 1}}),
            "arm 'm': merge.sources 'b' is no arm that is trained, and no artifact: choose",
        ),
        (_merged({"sources": {"m": 1}}), "arm 'm': merge.sources 'm' is no arm that is trained"),
        (_merged({"sources": {"aa": 1}}, "aaa"), "did you mean 'aaa'?"),
        (_merged({"sources": {"a": 0}}), "'a': the weight 0 takes nothing of it"),
        (_merged({"sources": {}}), "arms.m.merge.sources"),
        (_merged({"sources": {"a": 1}, "method": "tise"}), "arms.m.merge.method = 'tise'"),
        (_merged({"sources": {"a": 1}, "density": 0.5}), "density 0.5 prunes nothing with method linear"),
        (_merged({"sources": {"a": 1}, "mehtod": "ties"}), "did you mean 'method'?"),
        (_merged({"sources": {"a": 1, "empty.txt": 1}}), "empty.txt'"),
        (_ordinary(arms={"m": {"merge": {"sources": {"empty.txt": 1}}}}), "no arm has a recipe"),
        (_ordinary(arms={"m": {}}), "an arm has a recipe or a merge"),
        (
            _merged({"sources": {"a": 1}}, recipe="tiny_dreambooth", settings={"data.class_name": "robot"}),
            "'a' trains a full model, and a merge takes LoRAs",
        ),
        (_merged({"sources": {"a": 1}}, settings={"tuning.use_dora": True}), "'a' is a DoRA"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    here: Here, tmp_path: Path, experiment: dict[str, Any] | str, line: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    text = experiment if isinstance(experiment, str) else json.dumps(experiment)
    (tmp_path / "mine.yaml").write_text(text)
    code, out, err = here("compare", "mine.yaml")
    assert (code, out) == (2, "")
    errors = [text for text in err.splitlines() if text.lower().startswith("error: ")]
    assert len(errors) == 1, err
    assert line in errors[0]
    assert not (tmp_path / "runs").exists()


def test_arms_on_two_bases_are_refused_before_anything_runs(here: Here, embedded: Path, tmp_path: Path) -> None:
    shutil.copytree(embedded, tmp_path / "mine")
    config = tmp_path / "mine" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("leading", "trailing"))
    arms = {"a": {"recipe": "tiny_lora"}, "b": {"recipe": "tiny_lora", "settings": {"base.id": str(tmp_path / "mine")}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(_ordinary(arms=arms)))
    code, _, err = here("compare", "mine.yaml")
    assert code == 2
    assert "arms are compared on one base" in err
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_of_another_recipe_or_base_is_refused_before_anything_runs(here: Here, tmp_path: Path) -> None:
    arms = {"a": {"recipe": "tiny_lora"}, "b": {"recipe": "tiny_dreambooth_lora"}}
    (tmp_path / "mine.yaml").write_text(json.dumps(_ordinary(arms=arms, settings={"data.class_name": "robot"})))
    runs = load_experiment(str(tmp_path / "mine.yaml")).runs({})
    recipe = runs[1].recipe
    folder = open_run(recipe, tmp_path / "runs", "mine-b", scan_images(recipe)).folder
    code, _, err = here("compare", "mine.yaml", "optim.steps=70")
    assert code == 2
    assert "(optim.steps is" in err and "70 here): give another --storage" in err
    made = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**made, "base": "f" * 64}))
    code, _, err = here("compare", "mine.yaml")
    assert code == 2
    assert "was made on base 'tiny' at ffffffffffff, which is at" in err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine-b"]


def test_a_storage_that_cannot_be_made_is_one_line(here: Here, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps(_ordinary()))
    code, _, err = here("compare", "mine.yaml", "--storage", "/dev/null/x")
    assert code == 2
    assert "storage '/dev/null/x'" in err


def test_the_curves_are_those_of_the_studys_arms() -> None:
    curves, study = load_experiment("curves"), load_experiment("study")
    assert curves.arms == study.arms
    for run in curves.runs({}):
        assert (run.recipe.optim.steps, run.recipe.evaluation.every, run.recipe.evaluation.patience) == (300, 25, 0)
        assert (run.recipe.parallel.engine, run.recipe.parallel.workers, run.recipe.seed) == ("local", (1, 1), 0)
    assert {run.recipe.optim.steps for run in study.runs({})} == {300}


def test_subjects_and_seeds_make_runs_seed_by_seed() -> None:
    study = load_experiment("study")
    runs = study.runs({"optim.steps": 3, "optim.warmup_steps": 0})
    assert len(runs) == len({run.named("study") for run in runs}) == 6 * 3 * 4
    assert [run.recipe.seed for run in runs] == [0] * 24 + [1] * 24 + [2] * 24
    first = runs[0]
    assert (first.named("study"), first.subject) == ("study-lora-robot-0", "robot")
    assert first.recipe.data.validation == "subject:robot/held_out"
    assert {run.recipe.optim.steps for run in runs} == {3}
    (alone,) = (run for run in load_experiment("demo").runs({}) if run.arm == "lora")
    assert (alone.named("demo"), alone.label) == ("demo-lora", "")
    photos = load_experiment("photos").runs({})
    counts = {run.arm: run.recipe.data.limit for run in photos}
    assert counts == {f"{way}_{n}": n if n < 5 else None for way in ("lora", "dreambooth") for n in (1, 2, 3, 5)}
    whole = next(run for run in photos if run.named("photos") == "photos-lora_5-frog-2")
    same = next(run for run in study.runs({}) if run.named("study") == "study-lora-frog-2")
    assert whole.recipe.identity == same.recipe.identity  # so that `photos` finds it trained


def test_a_merge_takes_the_runs_of_its_subject_and_seed(tmp_path: Path) -> None:
    subjects = {name: {"settings": {"data.images": f"subject:{name}"}} for name in ("robot", "frog")}
    (tmp_path / "loras").mkdir()
    merge = {"sources": {"a": 0.5, "a-frog": 1, str(tmp_path / "loras"): -1}, "method": "dare_ties", "seed": 3}
    made = _ordinary(subjects=subjects, training_seeds=[1, 11], arms={"m": {"merge": merge}, "a": {"recipe": "lora"}})
    (tmp_path / "mine.yaml").write_text(json.dumps(made))
    runs = load_experiment(str(tmp_path / "mine.yaml")).runs({})
    assert [run.named("x") for run in runs] == [
        f"x-{arm}-{subject}-{seed}" for seed in (1, 11) for arm in "am" for subject in ("robot", "frog")
    ]
    for run in runs:
        if run.merge is not None:
            assert (run.merge.method, run.merge.seed) == ("dare_ties", 3)
            names = [(s if isinstance(s, str) else s.label, weight) for s, weight in run.sources]
            assert names == [(run.label, 0.5), (f"frog-{run.recipe.seed}", 1.0), (str(tmp_path / "loras"), -1.0)]
            assert run.recipe.data.images == f"subject:{run.subject}"


@pytest.mark.slow
def test_what_is_trained_under_another_name_is_not_trained_again(here: Here, tmp_path: Path) -> None:
    """Two subjects, two seeds, a run that `train` made: it is found, and scores are joined over all."""
    subjects = {
        name: {"settings": {"data.images": f"subject:{name}", "data.validation": f"subject:{name}/held_out",
                            "data.subject": f"sks {name}", "data.class_name": name}, "other": "subject:cat"}
        for name in ("robot", "frog")
    }  # fmt: skip
    quick = dict(word.split("=") for word in QUICK)
    settings = {key: json.loads(value) if value[0].isdigit() else value for key, value in quick.items()}
    settings |= {"evaluation.draws": 1, "optim.steps": 1, "checkpoint.every": 1}
    (tmp_path / "two.txt").write_text("a photo of {a_subject}\na photo of {a_subject} in a forest\n")
    both = {"merge": {"sources": {"lora-robot": 0.7, "lora-frog": 0.7}, "method": "ties", "rank": 4}}
    made = {"settings": settings, "subjects": subjects, "training_seeds": [0, 1], "prompts": "two.txt", "seeds": 1,
            "class_images": 2, "steps": [1, 2], "arms": {"both": both, "lora": {"recipe": "tiny_lora"}}}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(made))
    words = [f"{key}={json.dumps(value)}" for key, value in {**settings, **subjects["robot"]["settings"]}.items()]
    code, _, err = here("train", "tiny_lora", *words, "--name", "earlier")
    assert code == 0, err
    code, out, err = here("compare", "mine.yaml", "--json")
    assert code == 0, err
    assert "arm lora (robot-0): 1 of 8, trained already as earlier" in err
    folders = {path.parent.name for path in (tmp_path / "runs").glob("*/summary.json")}
    assert folders == {"earlier", "mine-lora-robot-1", "mine-lora-frog-0", "mine-lora-frog-1"}
    reported = json.loads(out)
    merged, lora = reported["arms"]
    assert (merged["arm"], merged["runs"], merged["train_s"], lora["runs"]) == ("both", 4, None, 4)
    assert all(
        Artifact.open(merge).manifest.origin["rank"] == 4 for merge in (tmp_path / "runs").glob("*both*/artifact")
    )
    values = {(r["model"], r["subject"], r["metric"], r["split"]): r["value"] for r in reported["scores"]}
    for metric in ("dino_i", "clip_t", "pres", "dino_i_gain"):
        mean = (values["lora", "robot", metric, "final"] + values["lora", "frog", metric, "final"]) / 2
        assert values["lora", ALL_SUBJECTS, metric, "final"] == pytest.approx(mean, abs=1e-12)
    assert ("other", "robot", "dino_i", "final") in values
    assert {split for *_, split in values} == {"final", "final@1", "final@2"}
    text = (tmp_path / "runs" / "mine-comparison" / "report.md").read_text()
    assert "over 2 subjects" in text
    assert "against denoising steps" in text
    assert "merge" in text


def test_what_is_wrong_with_an_experiment_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no experiment named 'dmeo': did you mean 'demo'"):
        load_experiment("dmeo")
    (tmp_path / "empty.yaml").write_text("arms: {}")
    with pytest.raises(UserError, match="arms"):
        load_experiment(str(tmp_path / "empty.yaml"))
    (tmp_path / "typo.yaml").write_text("arms: {a: {recipe: lora, setings: {}}}")
    with pytest.raises(UserError, match="did you mean 'settings'"):
        load_experiment(str(tmp_path / "typo.yaml"))
    (tmp_path / "arm.yaml").write_text("arms: {a: {recipe: lroa}}")
    with pytest.raises(UserError, match="arm 'a': no recipe named 'lroa': did you mean 'lora'"):
        load_experiment(str(tmp_path / "arm.yaml")).runs({})
