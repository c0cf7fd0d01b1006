"""`sdxl-ray extract`: LoRAs, table, scores and plots by one command, and wrong input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import read
from tests.conftest import Here
from tests.full_model import layer_noise, moved_run
from tests.random_lora import random_run

RECIPE = override(Recipe(), {"data.subject": "sks dog", "data.class_name": "dog", "tuning": {"kind": "full"}})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    changes = {"evaluation.num_inference_steps": 1, "evaluation.guidance_scale": 1.0}
    return moved_run(tmp_path_factory.mktemp("runs") / "moved", override(RECIPE, changes), layer_noise(0.03))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_one_command_extracts_scores_and_plots(here: Here, tuned: Artifact, held_out: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of {a_subject}\n")
    words = ["extract", str(tuned.folder), "--ranks", "1,2", "--out", "out", "--dtype", "fp16"]
    scoring = ["--subject", str(held_out), "--prompts", "prompts.txt", "--seeds", "1", "--class-images", "2"]
    code, out, err = here(*words, *scoring, "--size", "32")
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["rank-1", "rank-2"]
    assert "unchanged: " in out and "embeddings: 4 tensors" in out
    assert "extracting 419/419" in err
    scored = {line.partition(" ")[0] for line in lines}
    assert {"base", "full", "rank-1", "rank-2"} <= scored
    recorded = read(tmp_path / "out" / "evaluation" / "records", "scores")["model"].to_pylist()
    assert {"base", "full", "rank-1", "rank-2"} <= set(recorded)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<svg class="plot"') >= 4
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("# Extraction of moved\n")
    assert "| rank-2" in text
    assert ("95%" in text) == ("95%" in out)  # the verdict, where the model has learnt anything
    with Image.open(tmp_path / "out" / "plots" / "dino_i-by-rank.png") as plot:
        colours = plot.convert("RGB").getcolors(1 << 20) or []
    assert (0, 0x72, 0xB2) in {colour for _, colour in colours}  # the first of the palette, not a placeholder
    code, out, err = here(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["hash"] == tuned.hash
    assert {row["name"] for row in found["extractions"]} == {"rank-1", "rank-2"}
    assert found["scores"] == []
    assert "extracting" not in err  # what is there is not made again


def test_an_extraction_is_evaluated_by_its_run_s_own_photos_alone(here: Here, tuned: Artifact, tmp_path: Path) -> None:
    code, _, err = here("extract", str(tuned.folder), "--ranks", "1", "--out", "out", "--score")
    assert code == 2
    assert "--subject" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--ranks", "0"], "'0' is no rank"),
        (["--ranks", "many"], "'many' is no rank"),
        (["--ranks", "4,4096"], "the largest matrix of this model has rank 128; give at most 128, or full"),
        (["--energy", "1.5"], "'1.5' is no share"),
        (["--out", "/dev/null/x"], "'/dev/null' is no folder of yours; give another --out"),
        (["--dtype", "int8"], "choose from fp16, bf16, fp32"),
        (["--base", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_wrong_options_are_exit_2_and_one_line(
    here: Here, tuned: Artifact, tmp_path: Path, words: list[str], line: str
) -> None:
    code, out, err = here("extract", str(tuned.folder), "--out", "out", *words)
    assert (code, out) == (2, "")
    errors = [text for text in err.splitlines() if text.lower().startswith("error: ")]
    assert len(errors) == 1, err
    assert line in errors[0]
    assert not (tmp_path / "out").exists()


def test_what_is_no_full_model_is_refused(here: Here, embedded: Path, photos: Path, tmp_path: Path) -> None:
    lora = random_run(
        tmp_path / "runs" / "lora", override(RECIPE, {"data.images": str(photos), "tuning": {"kind": "lora"}})
    )
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for words, line in (
        ([str(lora.folder)], "is a LoRA already: extract takes a full model"),
        ([str(lora.folder.parent)], "did you mean"),
        ([str(single)], "it is empty"),
        (["nowhere"], "no such folder"),
        (["empty", "--base", "tiny"], "is no full model"),
        ([str(embedded)], "does not say what it was made on: give --base"),
        ([str(embedded), "--base", "tiny"], "is the base itself"),
    ):
        code, out, err = here("extract", *words)
        assert (code, out) == (2, ""), words
        assert line in err, words
