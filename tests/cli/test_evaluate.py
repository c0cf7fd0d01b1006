"""`sdxl-ray evaluate`: what it prints and writes, where its defaults come from, and what it refuses in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdxl_ray.config.recipe import Recipe, override, parse
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import read
from tests.random_lora import random_run

Here = Callable[..., tuple[object, str, str]]

QUICK = ["--steps", "1", "--size", "32", "--seeds", "1", "--class-images", "2"]


def _photos(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """Trained on `photos/rex`, with `photos/rex/held_out` held out, under other settings than the defaults."""
    photos = _photos(tmp_path / "photos" / "rex", 3, 0)
    held_out = _photos(photos / "held_out", 2, 1)
    changes = {
        "data.images": str(photos),
        "data.validation": str(held_out),
        "data.subject": "sks dog",
        "evaluation.num_inference_steps": 1,
        "evaluation.guidance_scale": 3.0,
    }
    return random_run(tmp_path / "runs" / "rex-lora", override(Recipe(), changes))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_defaults_come_from_the_artifact_and_the_same_call_draws_nothing(
    here: Here, artifact: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of {a_subject}\na photo of {a_subject} with a zorblax\n")
    words = ["evaluate", "base", str(artifact.folder), "--prompts", "prompts.txt", "--out", "out", *QUICK[2:]]
    code, out, err = here(*words)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["model", "dino_i", "clip_i"]
    assert [line.split()[0] for line in lines[2:5]] == ["base", "rex-lora", "real"]
    assert "dino_i: n 2, tiny-identity (resize 64x64 bicubic" in out
    assert "div is absent: it needs at least 2 seeds" in out
    assert "does not know 'zorblax'" in err
    assert "drawing rex-lora" in err
    assert (tmp_path / "out" / "grid.png").is_file()
    images = read(tmp_path / "out" / "records", "pictures").to_pylist()
    wanted = ("rex-lora", "subject", "a photo of a dog")  # the prompt about the class names the image in records
    path = next(p["path"] for p in images if (p["model"], p["purpose"], p["prompt"]) == wanted)
    with Image.open(tmp_path / "out" / path) as image:
        text = image.text  # type: ignore[attr-defined]  # PNG only
    assert (text["num_inference_steps"], text["guidance_scale"], text["artifact"]) == ("1", "3.0", artifact.hash)
    assert text["prompt"] == "a photo of sks dog"
    code, out, err = here(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["subject"], found["class"]) == ("rex", "dog")
    assert {row["model"] for row in found["scores"]} == {"base", "rex-lora", "real"}
    assert {(row["model"], row["against"]) for row in found["differences"]} == {("rex-lora", "base")}
    assert "drawing" not in err.replace("drawing rex-lora 4/4", "").replace("drawing base 3/3", "")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_base_alone(here: Here) -> None:
    words = ["evaluate", "base", "--subject", "subject:robot/held_out", "--class-name", "robot", "--split", "tune"]
    code, out, err = here(*words, *QUICK, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["subject"], found["split"]) == ("robot", "tune")
    absent = {row["metric"] for row in found["scores"] if row["value"] is None}
    assert absent == {"div"}
    assert found["absent"] == ["div is absent: it needs at least 2 seeds"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["base"], "give --class-name"),
        (["base", "--class-name", "dog"], "--subject DIR"),
        (["nowhere"], "no such folder"),
        (["base", "base"], "two models are called 'base'"),
        (["base", "--class-name", "dog", "--subject", "nowhere"], "does not exist"),
        (["base", "--class-name", "dog", "--subject", "subject:robt"], "did you mean 'robot'"),
        (["base", "--class-name", "dog", "--split", "last"], "choose from final, tune, validation"),
        (["base", "--class-name", "dog", "--precision", "int8"], "choose from auto"),
        (["base", "--class-name", "dog", "--size", "33"], "try 32"),
        (["base", "--class-name", "dog", "--prompts", "none.txt"], "no such file"),
        (["base", "--class-name", "dog", "--prompts", "tinny"], "did you mean 'tiny'"),
        (["base", "--class-name", "dog", "--out", "/dev/null/x"], "/dev/null/x"),
        (["base", "--class-name", "dog", "--seeds", "0"], "seeds"),
        (["base", "--class-name", "robot", "--subject", "subject:robot", "--identity", "dinov2-base"], "--identity="),
        (["base", "--class-name", "robot", "--subject", "subject:robot", "--other", "subject:robot"], "--other: "),
        (["base", "--class-name", "a", "--subject", "subject:dog", "--base", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_wrong_input_is_exit_2_and_one_error_line(here: Here, words: list[str], line: str) -> None:
    code, out, err = here("evaluate", *words)
    assert (code, out) == (2, "")
    errors = [text for text in err.splitlines() if text.lower().startswith("error: ")]
    assert len(errors) == 1, err
    assert line in errors[0]


def test_an_artifact_that_was_changed_or_saw_the_photos_is_refused(
    here: Here, artifact: Artifact, tmp_path: Path
) -> None:
    code, _, err = here("evaluate", str(artifact.folder), "--subject", "photos/rex")
    assert code == 2
    assert "'rex-lora' was trained on" in err
    weights = artifact.folder / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    code, _, err = here("evaluate", "base", f"mine={artifact.folder}")
    assert code == 2
    assert "pytorch_lora_weights.safetensors was altered" in err
    (tmp_path / "empty.txt").write_text("\n")
    code, _, err = here("evaluate", "base", "--class-name", "dog", "--prompts", "empty.txt")
    assert code == 2
    assert "is empty" in err


def test_artifacts_of_different_subjects_are_refused(here: Here, artifact: Artifact, tmp_path: Path) -> None:
    own = artifact.manifest.recipe
    photos = _photos(tmp_path / "photos" / "max", 3, 2)
    changes = {"data.images": str(photos), "data.validation": str(_photos(photos / "held_out", 2, 3))}
    other = random_run(tmp_path / "runs" / "max-lora", override(parse(own), changes))
    code, out, err = here("evaluate", str(artifact.folder), str(other.folder), *QUICK)
    assert (code, out) == (2, "")
    assert "they held out different photos" in err and "--subject DIR" in err
    cat = random_run(tmp_path / "runs" / "cat-lora", override(parse(own), {**changes, "data.subject": "sks cat"}))
    code, out, err = here("evaluate", str(artifact.folder), str(cat.folder), *QUICK)
    assert (code, out) == (2, "")
    assert "different classes ('rex-lora' of class 'dog', 'cat-lora' of class 'cat')" in err
