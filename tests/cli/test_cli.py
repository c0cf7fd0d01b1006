"""The command line: exit codes, one-line errors, help with examples, and JSON that is only JSON."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

from sdxl_ray import __version__
from sdxl_ray.__main__ import COMMANDS
from sdxl_ray.cli.arguments import read_recipe
from sdxl_ray.cli.devices import count_images, cpu_here, elsewhere
from sdxl_ray.cli.serve import _configuration
from sdxl_ray.cli.settings_reference import reference
from sdxl_ray.config.recipe import Recipe, load, names, override, read_base
from sdxl_ray.doctor.machine import PACKAGES, embedded_base, examine, packages, ray_authentication, required
from sdxl_ray.errors import RunError
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import read
from sdxl_ray.paths import local_path
from sdxl_ray.plan.container_memory import container_memory_bytes
from sdxl_ray.tiny import shipped

#: The fixtures of conftest.py: a child process, and `here(*words)` -> exit code, stdout, stderr.
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Here = Callable[..., tuple[object, str, str]]


def test_help_names_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert done.returncode == 0
    listed = done.stdout.partition("Commands:\n")[2]
    assert [line.split()[0] for line in listed.splitlines() if line[:3].strip()] == list(COMMANDS)
    assert "..." not in listed  # no first sentence is cut
    assert cli("--version").stdout == f"sdxl-ray {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_ends_with_examples_of_it(here: Here, name: str) -> None:
    code, out, _ = here(name, "--help")
    assert code == 0
    examples = [line.strip() for line in out.partition("Examples:\n")[2].splitlines()]
    assert examples == list(COMMANDS[name][1])
    for example in examples:
        assert shlex.split(example)[:2] == ["sdxl-ray", name]
    assert "--json" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["recpes"], "Did you mean 'recipes'?"),
        (["recipes", "--jsn"], "--json"),
        (["recipes", "lroa"], "did you mean 'lora'?"),
        (["config", "lora", "optim.lrr=1"], "did you mean 'lr'?"),
        (["config", "lora", "optim.lr"], "write path=value"),
        (["config", "lora", "optim.lr=-1"], "optim.lr = -1"),
        (["config", "none.yaml"], "none.yaml"),
        (["generate", "nowhere", "a dog"], "no such folder"),
        (["generate", "base", ""], "a prompt is empty"),
        (["generate", "base", "a dog", "--size", "big"], "1216x832"),
        (["generate", "base", "a dog", "--size", "65"], "try 64"),
        (["generate", "base", "a dog", "--steps", "0"], "steps"),
        (["generate", "base", "a dog", "--seed", "-1"], "seed"),
        (["generate", "base", "a dog", "--n", "x"], "--n"),
        (["generate", "base", "a dog", "--guidance", "nan"], "guidance"),
        (["generate", "base", "a dog", "--precision", "int8"], "bf16"),
        (["generate", "base", "a dog", "--base", "nowhere/at-all"], "nowhere/at-all"),
        (["generate", "base", "a dog", "--out", "/dev/null/x"], "/dev/null/x"),
        (["generate", "base"], "PROMPT"),
        (["train", "lora"], "data.images"),
        (["train", "tiny_dreambooth", "data.images=photos"], "data.class_name"),
        (["train", "tiny_lora", "data.images=photos", "data.subject=sks dog"], "photos"),
        (["plan", "lora", "--gpu", "4091"], "did you mean '4090'?"),
        (["plan", "lora", "--gpu-memory", "much"], "24GiB"),
        (["plan", "lora", "--gpu", "h100", "--price-per-hour", "nan"], "price"),
        (["plan", "lora", "--gpu", "h100", "--workers", "0"], "workers"),
        (
            [
                "train",
                "dreambooth",
                "data.images=subject:robot",
                "data.class_name=a",
                "parallel.workers=1",
                "--gpu",
                "4090",
            ],
            "add ",
        ),
        (["train", "tiny_lora", "data.images=photos", "optim.stpes=3"], "did you mean 'steps'?"),
    ],
)
def test_wrong_input_is_exit_2_and_one_error_line(here: Here, words: list[str], line: str) -> None:
    code, out, err = here(*words)
    assert (code, out) == (2, "")
    errors = [text for text in err.splitlines() if text.lower().startswith("error: ")]
    assert len(errors) == 1, err
    assert line in errors[0]


def test_a_child_process_says_the_same(cli: Cli) -> None:
    done = cli("config", "lroa")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no recipe named 'lroa': did you mean 'lora'?, or give a .yaml file\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [(RunError("step 7:\nNaN"), 1, "error: step 7: NaN\n"), (KeyboardInterrupt(), 130, "")],
)
def test_a_failed_run_is_exit_1_and_ctrl_c_130(
    here: Here, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "broken", (fail, ()))
    assert here("broken") == (code, "", line)


def test_plan_prints_what_a_run_needs(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = here("plan", "lora", "--gpu", "4090")
    assert (code, err) == (0, "")
    assert "2,567,463,684" in out
    assert "ZeRO-3" in out
    monkeypatch.setenv("PATH", "")  # no driver to ask, even where there is a GPU
    assert "planned for cpu" in here("plan", "tiny_lora")[2]


def test_a_plan_counts_the_images_that_train(tmp_path: Path) -> None:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "c.png", "d.webp", "notes.txt", "more/e.jpg"):
        (tmp_path / "photos" / name).touch()
    recipe = override(load("lora"), {"data.images": str(tmp_path / "photos")})
    assert count_images(recipe) == 3  # one is held out
    assert count_images(override(recipe, {"data.limit": 2})) == 2
    assert count_images(override(recipe, {"data.validation": "elsewhere"})) == 4
    assert count_images(override(recipe, {"data.holdout": 4})) is None
    assert count_images(override(recipe, {"data.images": "subject:robot"})) == 4
    assert count_images(override(recipe, {"data.images": "nowhere"})) is None


def test_a_cpu_has_what_its_container_has() -> None:
    whole = psutil.virtual_memory().total
    assert cpu_here().memory_bytes == min(whole, container_memory_bytes() or whole)


def test_a_variants_name_may_have_dots() -> None:
    found = _configuration("compare", [], ["v1.5=runs/a", "v1=runs/b"], None, None, False).variants
    assert {name: variant.artifact for name, variant in found.items()} == {
        "base": None,
        "v1": local_path("runs/b"),
        "v1.5": local_path("runs/a"),
    }


def test_what_a_cluster_has_is_not_planned_by_this_machine(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not elsewhere(None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    # An optimizer that is not installed ends the run before any cluster is looked for.
    words = ("train", "tiny_lora", "data.images=subject:robot", "data.subject=sks robot", "optim.name=adamw8bit")
    code, _, err = here(*words)
    assert code == 2
    assert "memory is not checked: name the cluster's GPUs" in err


def test_a_plan_that_does_not_fit_is_printed_and_refused(here: Here) -> None:
    code, out, err = here("plan", "dreambooth", "--gpu-memory", "24GiB", "--workers", "1", "--json")
    assert code == 2
    assert json.loads(out)["fits"] is False
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_recipes_lists_what_is_shipped_and_prints_one(here: Here) -> None:
    listed = here("recipes")[1].splitlines()
    assert [line.split()[0] for line in listed] == names()
    assert all(len(line.split()) > 3 for line in listed)
    assert set(json.loads(here("recipes", "--json")[1])) == set(names())
    printed = here("recipes", "lora")[1]
    assert printed.startswith("# LoRA for SDXL")
    assert override(Recipe(), yaml.safe_load(printed)).tuning == load("lora").tuning


def test_a_printed_recipe_is_a_recipe(here: Here, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(here("recipes", "dreambooth")[1])
    printed = yaml.safe_load(here("config", "mine.yaml", "seed=3", "--base", "tiny")[1])
    assert Recipe.model_validate(printed) == override(load("dreambooth"), {"base": "tiny", "seed": 3})
    assert json.loads(here("config", "mine.yaml", "seed=3", "--base", "tiny", "--json")[1]) == printed


def test_the_reference_has_every_setting(here: Here) -> None:
    lines = {setting.path: setting for setting in reference(Recipe)}
    for section in ("base", "data", "optim", "objective", "parallel", "checkpoint", "evaluation", "resources"):
        for field in getattr(Recipe(), section).__class__.model_fields:
            assert any(path.startswith(f"{section}.{field}") for path in lines), (section, field)
    assert lines["optim.lr"].values == "number > 0"
    assert lines["optim.lr"].default == "0.0001"
    assert lines["data.prior.num_class_images"].default == "200"
    assert lines["tuning.rank [kind lora]"].values == "whole number >= 1"
    assert lines["parallel.zero_stage"].values == "auto | 0 | 1 | 2 | 3"
    assert len(json.loads(here("config", "--json")[1])) == len(lines)
    assert here("config")[1].count("\n") >= len(lines)


@pytest.mark.slow
# diffusers' Euler scheduler hands torch tensors to NumPy 2 the old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_generate_draws_the_same_images_again_and_says_how(cli: Cli, here: Here, tmp_path: Path) -> None:
    words = ["generate", "base", "a photo of a dog", "a cat", "--n", "2", "--seed", "5", "--steps", "2", "--json"]
    first = cli(*words, "--out", "one")
    assert first.returncode == 0, first.stderr
    made = json.loads(first.stdout)  # nothing but JSON on stdout
    assert [(p["prompt"], p["seed"]) for p in made["images"]] == [
        ("a photo of a dog", 5), ("a photo of a dog", 6), ("a cat", 5), ("a cat", 6),
    ]  # fmt: skip
    code, out, _ = here(*words[:-1], "--batch", "1", "--out", "two")
    assert code == 0
    paths = out.splitlines()
    assert [Path(path).name for path in paths] == [*(Path(p["path"]).name for p in made["images"]), "grid.png"]
    differences = []
    for image, path in zip(made["images"], paths, strict=False):
        with Image.open(tmp_path / image["path"]) as one, Image.open(tmp_path / path) as two:
            assert one.text["prompt"] == image["prompt"]  # type: ignore[attr-defined]  # PNG only
            assert one.text["seed"] == str(image["seed"])  # type: ignore[attr-defined]
            assert one.text["base"] == "tiny"  # type: ignore[attr-defined]
            differences.append(max(abs(a - b) for a, b in zip(one.tobytes(), two.tobytes(), strict=True)))
    assert max(differences) <= 1  # another batch: rounding of one 8-bit level at most
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == sorted(Path(path).name for path in paths)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_generate_names_the_words_that_the_embedded_base_does_not_know(here: Here) -> None:
    words = ["--steps", "1", "--size", "32", "--json"]
    code, out, err = here("generate", "base", "a Zorblax isn't a cat's 漢字, zorblax!", "--negative", "qqqx 7", *words)
    assert code == 0, err
    assert json.loads(out)["steps"] == 1
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "does not know 'zorblax', 'isn', '漢字', 'qqqx'; `sdxl-ray doctor`" in notes[0]
    assert "note: " not in here("generate", "base", "a photo of sks dog on the beach", *words)[2]


@pytest.mark.slow
def test_a_long_caption_is_reported_then_learnt_and_used(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    caption = " ".join(["sks dog"] * 20)  # the embedded base takes 30 tokens at once
    for shade in range(3):
        Image.new("RGB", (32, 32), (60 * shade, 40, 200)).save(tmp_path / "photos" / f"{shade}.png")
        (tmp_path / "photos" / f"{shade}.txt").write_text(f"{caption} on the beach" if shade else "sks dog")
    settings = (
        "data.images=photos parallel.engine=local parallel.workers=1 optim.steps=1 optim.warmup_steps=0 "
        "optim.batch_size=2 data.resolution=32 evaluation.every=0 evaluation.num_inference_steps=1"
    )
    words = ["train", "tiny_lora", *settings.split(), "--json"]
    code, out, err = here(*words, "data.max_token_length=150")
    assert code == 0, err
    assert "are used" not in err
    artifact = json.loads(out)["artifact"]
    code, _, err = here(*words)
    assert code == 0, err
    assert err.count("note: 2 of 3 captions are longer than the 30 tokens that are used; the longest has 43;") == 1
    assert "dog on the beach'; data.max_token_length=150 uses it all" in " ".join(err.split())

    quick = ["--steps", "1", "--size", "32", "--json"]

    def image(*words: str) -> tuple[bytes, str]:
        code, out, err = here("generate", *words, *quick)
        assert code == 0, err
        return Image.open(json.loads(out)["images"][0]["path"]).tobytes(), " ".join(err.split())

    whole, said = image(artifact, f"{caption} on the beach")
    assert "are used" not in said
    first, said = image(artifact, f"{caption} on the beach", "--max-token-length", "75")
    assert "note: the prompt has 43 tokens, the first 30 are used; cut off: " in said
    assert said.count("on the beach'; --max-token-length 150 uses it all") == 1
    assert first != whole
    assert image("base", "a dog", "--negative", caption)[1].count("note: the negative prompt has 40 tokens") == 1
    code, _, err = here("generate", "base", "a dog", "--max-token-length", "77")
    assert (code, err) == (2, "error: --max-token-length 77: choose from 75, 150, 225\n")


@pytest.mark.slow
def test_train_then_generate(cli: Cli, tmp_path: Path) -> None:
    for shade in range(4):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (80, 64), (60 * shade, 40, 200)).save(tmp_path / "photos" / f"{shade}.png")
    (tmp_path / "photos" / "9.caption").write_text("of no image")
    settings = (
        "data.images=photos data.subject=sks parallel.engine=local parallel.workers=1 optim.steps=2 "
        "optim.warmup_steps=0 evaluation.every=0 evaluation.num_inference_steps=1"
    )
    words = ["train", "tiny_lora", *settings.split(), "--json"]
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["steps"] == 2
    assert "training 2/2" in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("note: ")] == [
        f"note: data.images '{tmp_path}/photos': 1 caption file without an image (9.caption)",
        "note: optim.batch_size=4 is more than the 3 training images: a step sees some of them twice",
    ]
    assert read(tmp_path / run["folder"] / "records", "steps")["step"].to_pylist() == [1, 2]
    drawn = cli("generate", run["artifact"], "a photo of sks dog", "--steps", "1", "--json")
    assert drawn.returncode == 0, drawn.stderr
    made = json.loads(drawn.stdout)
    assert made["artifact"] == Artifact.open(tmp_path / run["artifact"]).hash
    assert (tmp_path / made["grid"]).is_file()
    assert cli("generate", run["folder"], "a dog").stderr.endswith("/artifact'?\n")  # the run's folder is close


def test_doctor_looks_at_this_machine(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    code, out, _ = here("doctor", "--json")
    report = json.loads(out)
    by_name = {finding["name"]: finding for finding in report["findings"]}
    assert code == (1 if report["state"] == "broken" else 0)
    assert set(PACKAGES) <= set(by_name)
    assert {"torch build", "cpu cores", "memory", "disk", "g++"} <= set(by_name)
    assert by_name["ray authentication"]["state"] == "unsafe"
    assert "RAY_AUTH_MODE=token" in by_name["ray authentication"]["fix"]
    assert by_name["embedded base"]["state"] == "ok"
    assert {"cat", "frog"} <= set(by_name["tiny draws"]["value"].split(", "))
    assert "beach" in by_name["tiny places"]["value"].split(", ")
    assert "ray authentication" in here("doctor")[1]


def test_doctor_names_every_shipped_file_that_is_not_whole(tmp_path: Path) -> None:
    for part in shipped.LISTED:
        shutil.copytree(shipped.ROOT / part, tmp_path / part)
    shutil.copy(shipped.ROOT / shipped.INDEX, tmp_path)
    assert next(embedded_base(tmp_path)).state == "ok"
    (tmp_path / "base" / "model_index.json").unlink()
    (tmp_path / "scorers" / "clip" / "config.json").write_text("{}")
    found = next(embedded_base(tmp_path))
    assert found.state == "broken"
    assert "base/model_index.json is missing (expected SHA-256" in found.value
    assert "scorers/clip/config.json is altered (expected SHA-256" in found.value
    assert "git checkout -- sdxl_ray/tiny/base/model_index.json" in found.fix
    (tmp_path / shipped.INDEX).unlink()
    found = next(embedded_base(tmp_path))
    assert (found.state, found.fix[:20]) == ("broken", "reinstall sdxl-ray, ")


def test_doctor_knows_old_new_missing_and_safe(tmp_path: Path) -> None:
    ranges = {
        "Pillow": ">=99",
        "pyarrow": ">=99.1",
        "ray": ">=2.9,<99",
        "peft": ">=0.1,<0.2",
        "no-such-thing": ">=1,<2",
    }
    states = {f.name: f for f in packages({name: SpecifierSet(text) for name, text in ranges.items()})}
    assert states["Pillow"].state == "unsafe"
    assert states["pyarrow"].state == "broken"
    assert states["ray"].state == "ok"
    assert states["no-such-thing"].fix == "pip install 'no-such-thing>=1,<2'"
    assert (states["peft"].state, states["peft"].fix) == (
        "note",
        "pip install 'peft>=0.1,<0.2': newer ones are not tested",
    )
    assert ray_authentication({"RAY_AUTH_MODE": "token"}).state == "ok"
    assert ray_authentication({}).state == "unsafe"
    assert all(finding.fix for finding in examine(tmp_path, {}) if finding.state in ("unsafe", "broken"))


def test_doctor_judges_versions_by_what_the_project_requires() -> None:
    declared = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    ranges = {one.name: one.specifier for one in map(Requirement, declared)}
    assert required() == {name: ranges[name] for name in PACKAGES}
    assert all(found.state == "ok" for found in packages())


def test_doctor_does_not_show_the_secrets_of_a_storage() -> None:
    findings = examine("memory://user:secret@x/y")
    assert next(one.value for one in findings if one.name == "storage") == "memory://x/y answers"
    assert not any("secret" in one.value + one.fix for one in findings)


def test_doctor_reads_the_limit_of_a_container(tmp_path: Path) -> None:
    assert container_memory_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert container_memory_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("2147483648\n")
    assert container_memory_bytes(tmp_path) == 2**31


def test_shared_arguments() -> None:
    commit = "4" * 40
    pinned = read_base(f"org/name@{commit}")
    assert (pinned.id, pinned.revision) == ("org/name", commit)
    assert read_base("some/deep/folder@home").id == "some/deep/folder@home"
    recipe = read_recipe("lora", ["base.vae=folder/vae"], "tiny")
    assert (recipe.base.id, recipe.base.revision, recipe.base.vae) == ("tiny", None, "folder/vae")


def test_home_is_home_in_the_storage_and_in_its_variable(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SDXL_RAY_STORAGE", "~/runs")
    for words, folder in ((), "home/runs"), (("--storage", "~/mine"), "home/mine"), (("--storage", "a b"), "a b"):
        found = json.loads(here("doctor", "--json", *words)[1])["findings"]
        assert f"free for {tmp_path / folder}" in next(one["value"] for one in found if one["name"] == "disk")


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ("C:\\runs", "is a path of Windows"),
        ("s3:/bucket", "write s3://bucket"),
        ("file:runs", "needs a whole path"),
        ("gs://", "has no bucket"),
        ("sftp://host/runs", "paramiko"),
        ("file", "is a file, not a folder"),
        ("s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http&region=x", "onnect"),
    ],
)
def test_a_storage_that_cannot_be_is_one_line_and_exit_code_2(
    storage: str, says: str, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr("sdxl_ray.io.storage.deadline._TRIES", 1)
    (tmp_path / "file").touch()
    words = (
        "train",
        "tiny_lora",
        "data.images=subject:robot",
        "data.subject=sks",
        "parallel.engine=local",
        "parallel.workers=1",
    )
    code, out, err = here(*words, "--storage", storage)
    last = err.splitlines()[-1]
    assert (code, out) == (2, "") and last.startswith("error: storage ") and says in last
    assert not [path for path in tmp_path.iterdir() if path.name not in ("file", "scratch")]
