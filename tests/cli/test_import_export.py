"""`sdxl-ray import` and `export`: the files of other tools, in and out, by relative paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
