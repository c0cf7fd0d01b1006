"""What is refused before anything starts: another recipe's folder, and what a base cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import write_manifest
from sdxl_ray.models.base_model_files import locate
from sdxl_ray.training.preflight import preflight
from sdxl_ray.training.run_directory import default_name, finished_run, open_run, scan_images
from tests.running import draw_images


def test_the_same_command_finds_its_run_again(recipe: Recipe, tmp_path: Path) -> None:
    images = scan_images(recipe)
    run = open_run(recipe, tmp_path, None, images)
    assert run.folder == tmp_path / default_name(recipe)
    assert run.cache == tmp_path / "cache"
    before = (run.folder / "run.json").read_bytes()
    # How it is laid out and how often it is kept may change; what it computes may not.
    moved = override(recipe, {"parallel.micro_batch": 2, "checkpoint.every": 7, "resources.max_failures": 0})
    again = open_run(moved, tmp_path, None, scan_images(moved))
    assert again == run
    assert (run.folder / "run.json").read_bytes() == before
    assert again.images().train.images == images.train.images
    assert [len(s) for s in (again.images().train, again.images().held_out)] == [4, 1]


def test_names_say_subject_and_method(recipe: Recipe) -> None:
    identity = recipe.identity[:8]
    assert default_name(recipe) == f"sks-dog-lora-{identity}"
    assert default_name(override(recipe, {"parallel.workers": 1})) == f"sks-dog-lora-{identity}"
    other = override(recipe, {"seed": 1})
    assert default_name(other).startswith("sks-dog-lora-")
    assert default_name(other) != default_name(recipe)
    prior = override(recipe, {"data.prior": {}, "data.subject": None})
    assert default_name(prior).startswith("photos-dreambooth_lora-")
    full = override(recipe, {"tuning": {"kind": "full"}, "data.subject": None, "data.images": "subject:robot"})
    assert default_name(full).startswith("robot-dreambooth-")


def test_another_recipe_is_refused_and_the_first_difference_named(recipe: Recipe, tmp_path: Path) -> None:
    run = open_run(recipe, tmp_path, "dog", scan_images(recipe))
    other = override(recipe, {"optim.lr": 5e-4, "seed": 3})
    with pytest.raises(
        UserError, match=r"another recipe \(optim.lr is 0.001 there, 0.0005 here\): give another --name"
    ):
        open_run(other, tmp_path, "dog", scan_images(other))
    other = override(recipe, {"tuning.rank_pattern": {"to_q": 8}})
    with pytest.raises(UserError, match=r"\(tuning.rank_pattern.to_q is None there, 8 here\)"):
        open_run(other, tmp_path, "dog", scan_images(other))
    assert json.loads((run.folder / "run.json").read_text())["recipe"]["optim"]["lr"] == 1e-3
    other = override(recipe, {"parallel.precision": "bf16"})
    with pytest.raises(UserError, match=r"\(parallel.precision is 'fp32' there, 'bf16' here\)"):
        open_run(other, tmp_path, "dog", scan_images(other))


def test_other_images_or_captions_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    photos = draw_images(tmp_path / "photos", [(40, 40), (50, 40), (40, 50)], 5)
    recipe = override(recipe, {"data.images": str(photos)})
    open_run(recipe, tmp_path, "dog", scan_images(recipe))
    (photos / "0.png").rename(photos / "renamed.png")
    open_run(recipe, tmp_path, "dog", scan_images(recipe))  # a name is not content
    (photos / "renamed.png").unlink()
    with pytest.raises(UserError, match="was made with other images or captions: give another --name"):
        open_run(recipe, tmp_path, "dog", scan_images(recipe))


def test_a_run_goes_on_only_on_the_base_that_it_was_begun_on(recipe: Recipe, tmp_path: Path) -> None:
    images = scan_images(recipe)
    run = open_run(recipe, tmp_path, "dog", images)
    made = json.loads((run.folder / "run.json").read_text())
    assert made["base"] == locate(recipe.base).revision
    (run.folder / "run.json").write_text(json.dumps({**made, "base": "f" * 64}))
    with pytest.raises(
        UserError, match=r"was made on base 'tiny' at f{12}, which is at \w{12} now: give another --name"
    ):
        open_run(recipe, tmp_path, "dog", images)
    del made["base"]  # begun before it was written down
    (run.folder / "run.json").write_text(json.dumps(made))
    assert open_run(recipe, tmp_path, "dog", images) == run


def test_a_finished_run_on_another_base_is_not_taken_for_this_one(recipe: Recipe, tmp_path: Path) -> None:
    run = open_run(recipe, tmp_path, "dog", scan_images(recipe))
    (run.folder / "summary.json").write_text("{}")
    for revision, name in ((locate(recipe.base).revision, "dog"), ("f" * 64, None)):
        (run.folder / "run.json").write_text(
            json.dumps({k: v for k, v in json.loads((run.folder / "run.json").read_text()).items() if k != "base"})
        )
        run.artifact.mkdir(exist_ok=True)
        write_manifest(run.artifact, kind="lora", recipe={}, recipe_identity="", base_id="tiny",
                       base_revision=revision, step=1)  # fmt: skip
        assert finished_run(recipe, tmp_path) == name


def test_a_folder_of_something_else_is_refused_but_an_unfinished_one_is_not(recipe: Recipe, tmp_path: Path) -> None:
    images = scan_images(recipe)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="is not empty and not a run folder: give another --name"):
        open_run(recipe, tmp_path, "mine", images)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "album" / "pictures").mkdir(parents=True)
    (tmp_path / "album" / "pictures" / "me.png").write_bytes(b"")
    with pytest.raises(UserError, match="not a run folder"):
        open_run(recipe, tmp_path, "album", images)
    run = open_run(recipe, tmp_path, "killed", images)
    (run.folder / "run.json").rename(run.folder / ".run.json.partial")
    assert open_run(recipe, tmp_path, "killed", images) == run
    (tmp_path / "empty").mkdir()
    open_run(recipe, tmp_path, "empty", images)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_said_and_the_command_works_once_there_is_room(recipe: Recipe, tmp_path: Path) -> None:
    images = scan_images(recipe)
    (tmp_path / "dog" / "pictures").mkdir(parents=True)
    (tmp_path / "dog" / ".run.json.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be made: .*\(the disk is full\); give another --storage"):
        open_run(recipe, tmp_path, "dog", images)
    open_run(recipe, tmp_path, "dog", images)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be made: Not a directory; give another --storage"):
        open_run(recipe, tmp_path / "file", "dog", images)


def test_preflight_accepts_what_runs_and_reads_no_weights(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdxl_ray.models.base_model.load_components", lambda *_, **__: pytest.fail("weights were read"))
    ambient = torch.get_rng_state()
    files = preflight(override(recipe, {"tuning.text_encoders": [1, 2], "tuning.use_dora": True}), "cpu")
    assert files.id == "tiny"
    assert torch.equal(torch.get_rng_state(), ambient)
    preflight(override(recipe, {"tuning": {"kind": "full"}}), "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.images": None}, "data.images is not set"),
        ({"data.prior": {}, "data.class_name": None}, "data.prior needs data.class_name"),
        (
            {"tuning.target_modules": ["to_q", "to_vv"]},
            r"tuning.target_modules 'to_vv' matches no layer of the unet: did you mean 'to_",
        ),
        ({"tuning.rank_pattern": {"attn3": 4}}, "tuning.rank_pattern 'attn3' matches none of"),
        ({"tuning.alpha_pattern": {"q_proj": 4}}, "tuning.alpha_pattern 'q_proj' matches none of"),
        ({"tuning.rank_pattern": {"(": 4}}, r"tuning.rank_pattern '\(' is no regular expression"),
        ({"objective.zero_terminal_snr": True}, "zero_terminal_snr needs v_prediction, this base predicts epsilon"),
        ({"optim.lr_scheduler": "piecewise_constant", "optim.step_rules": "1;2"}, "optim.step_rules '1;2': write"),
        ({"optim.name": "adamw8bit"}, "adamw8bit needs"),
        ({"optim.name": "prodigy", "optim.text_lr": 1e-9}, "prodigy"),
        ({"base": "no/such/folder"}, "no/such/folder"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_preflight_refuses_in_one_line(recipe: Recipe, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        preflight(override(recipe, changes), "cpu")
    assert "\n" not in str(refused.value)
