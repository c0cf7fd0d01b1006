"""`sdxl-ray import` and `export`: the files of other tools, in and out, by relative paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdxl_ray.formats.single_file import write_single_file
from sdxl_ray.tiny import shipped
from tests.conftest import Here
from tests.formats.adapters import ATTENTION, EVERYWHERE, kohya_file, random_adapter, tiny_names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_lora_goes_in_and_out_unchanged(here: Here, tmp_path: Path) -> None:
    original = load_file(kohya_file(tmp_path, random_adapter(EVERYWHERE, rank=4, alpha=2.0)))
    code, out, err = here("import", "foreign.safetensors", "--base", "tiny", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["artifact"] == "imported/foreign"
    assert told["origin"]["file"] == "foreign.safetensors"
    code, out, err = here("export", "imported/foreign", "--to", "comfyui")
    assert (code, out.strip(), err) == (0, "exported/foreign.safetensors", "")
    back = load_file(tmp_path / "exported" / "foreign.safetensors")
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)


def test_export_casts_and_takes_a_foreign_file_directly(here: Here, tmp_path: Path) -> None:
    kohya_file(tmp_path, random_adapter([ATTENTION], rank=4, alpha=8.0))
    words = (
        "export",
        "foreign.safetensors",
        "--base",
        "tiny",
        "--to",
        "diffusers",
        "--dtype",
        "fp16",
        "--out",
        "d.safetensors",
    )
    assert here(*words) == (0, "d.safetensors\n", "")
    tensors = load_file(tmp_path / "d.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert set(tensors) == {f"unet.{ATTENTION.module}.lora_{half}.weight" for half in "AB"}


def test_a_dora_says_what_comfyui_does_with_it(here: Here, tmp_path: Path) -> None:
    kohya_file(tmp_path, random_adapter([ATTENTION], dora=True))
    code, _, err = here("export", "foreign.safetensors", "--base", "tiny", "--to", "comfyui")
    assert code == 0
    assert "DoRA" in err
    out = load_file(tmp_path / "exported" / "foreign.safetensors")
    assert out[f"{tiny_names().kohya(ATTENTION)}.dora_scale"].shape == (128, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("import", "foreign.safetensors"), "--base"),
        (("import", "nowhere.safetensors", "--base", "tiny"), "nowhere.safetensors"),
        (("import", "foreign.safetensors", "--base", "tiny", "--out", "full"), "not empty"),
        (("export", "foreign.safetensors", "--base", "tiny", "--to", "kohia"), "did you mean 'kohya'"),
        (("export", "foreign.safetensors", "--base", "tiny", "--to", "kohya", "--dtype", "fp8"), "fp8"),
        (("export", "base", "--to", "kohya"), "no artifact"),
    ],
)
def test_bad_input_is_one_line(here: Here, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    kohya_file(tmp_path, random_adapter([ATTENTION]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    code, out, err = here(*words)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_commands_take_a_foreign_file_by_its_path(here: Here, tmp_path: Path, command: str) -> None:
    kohya_file(tmp_path, random_adapter([ATTENTION]))
    generate = ("generate", "foreign.safetensors", "a robot", "--base", "tiny", "--steps", "1", "--json")
    evaluate = ("evaluate", "base", "foreign.safetensors", "--base", "tiny", "--class-name", "robot")
    code, out, err = here(*{"generate": generate, "evaluate": evaluate}[command])
    if command == "generate":
        assert code == 0
        assert json.loads(out)["artifact"]
    else:  # nothing says what its subject is called
        assert code == 2
        assert "--called" in err or "--subject" in err


@pytest.fixture(scope="module")
def single(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that somebody tuned, as a single file: the embedded base with a stronger middle block."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(embedded, folder / "tuned")
    weights = folder / "tuned" / "unet" / "diffusion_pytorch_model.safetensors"
    changed = {
        name: value * 1.5 if name.startswith("mid_block") else value for name, value in load_file(weights).items()
    }
    save_file(changed, weights, {"format": "pt"})
    write_single_file(folder / "tuned", folder / "tuned.safetensors", metadata={})
    return folder / "tuned.safetensors"


def test_a_single_file_goes_in_and_out_unchanged(here: Here, tmp_path: Path, single: Path) -> None:
    shutil.copy(single, tmp_path / "tuned.safetensors")
    code, out, err = here("import", "tuned.safetensors", "--base", "tiny", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["kind"] == "full"
    assert here("export", "imported/tuned", "--to", "single-file")[:2] == (0, "exported/tuned.safetensors\n")
    ours, theirs = load_file(tmp_path / "exported" / "tuned.safetensors"), load_file(single)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].float(), theirs[name].float()) for name in theirs)


def test_a_folder_of_another_model_is_an_artifact(here: Here, tmp_path: Path, single: Path) -> None:
    shutil.copytree(single.with_suffix(""), tmp_path / "tuned")
    code, out, _ = here("generate", "tuned", "a robot", "--base", "tiny", "--steps", "1", "--json")
    assert code == 0
    changed = json.loads(out)["images"][0]["path"]
    assert here("generate", "base", "a robot", "--base", "tiny", "--steps", "1", "--out", "base")[0] == 0
    own = (tmp_path / "base").glob("1-*.png")
    assert np.abs(pixels(tmp_path / changed) - pixels(next(own))).max() > 3


def test_a_lora_is_merged_into_a_folder_or_one_file(here: Here, tmp_path: Path) -> None:
    kohya_file(tmp_path, random_adapter([ATTENTION], rank=4, alpha=8.0))
    export = ("export", "foreign.safetensors", "--base", "tiny", "--to", "merged")
    assert here(*export, "--out", "folder")[:2] == (0, "folder\n")
    assert here(*export, "--out", "one.safetensors")[:2] == (0, "one.safetensors\n")
    folder = load_file(tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors")[
        f"{ATTENTION.module}.weight"
    ]
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(load_file(tmp_path / "one.safetensors")[name], folder)
    base = load_file(shipped.BASE / "unet" / "diffusion_pytorch_model.safetensors")[f"{ATTENTION.module}.weight"]
    pair = random_adapter([ATTENTION], rank=4, alpha=8.0).low_rank[ATTENTION]
    assert torch.allclose(folder.float(), base.float() + pair.scale * pair.up @ pair.down, atol=1e-2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("imported/lora", "--to", "single-file"), "use --to diffusers, kohya, comfyui, merged"),
        (("imported/full", "--to", "kohya"), "use --to diffusers, comfyui, single-file"),
    ],
)
def test_a_format_that_the_kind_has_not_names_those_it_has(
    here: Here, tmp_path: Path, single: Path, words: tuple[str, ...], said: str
) -> None:
    kohya_file(tmp_path, random_adapter([ATTENTION]))
    assert here("import", "foreign.safetensors", "--base", "tiny", "--out", "imported/lora")[0] == 0
    assert here("import", str(single), "--base", "tiny", "--out", "imported/full")[0] == 0
    code, _, err = here("export", *words)
    assert code == 2
    assert said in err


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file), dtype=np.int16)


def test_a_textual_inversion_goes_in_and_out(here: Here, tmp_path: Path) -> None:
    vectors = {"clip_l": torch.randn(2, 64), "clip_g": torch.randn(2, 128)}
    save_file(vectors, tmp_path / "corgi.safetensors")
    code, _, err = here("import", "corgi.safetensors", "--base", "tiny", "--word", "<corgi>")
    assert (code, err) == (0, "")
    kept = load_file(tmp_path / "imported" / "corgi" / "embeddings" / "<corgi>.safetensors")
    assert all(torch.equal(kept[name], vectors[name]) for name in vectors)
    code, out, err = here("generate", "imported/corgi", "a photo of <corgi>", "--steps", "1", "--json")
    assert code == 0
    assert "does not know" not in err
    assert json.loads(out)["artifact"]
    assert here("export", "imported/corgi", "--to", "comfyui")[0] == 0
    bundled = load_file(tmp_path / "exported" / "corgi.safetensors")
    assert set(bundled) == {"bundle_emb.<corgi>.clip_l", "bundle_emb.<corgi>.clip_g"}
    code, _, err = here("import", "corgi.safetensors", "--base", "tiny", "--word", "robot", "--out", "other")
    assert code == 2
    assert "knows the word 'robot'" in err
    assert not (tmp_path / "other").exists()
