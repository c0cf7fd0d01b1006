"""`sdxl-ray inspect`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Here
from tests.formats.adapters import ATTENTION, kohya_file, random_adapter


def test_a_file_is_described(here: Here, tmp_path: Path) -> None:
    kohya_file(tmp_path, random_adapter([ATTENTION], rank=4, alpha=2.0))
    code, out, err = here("inspect", "foreign.safetensors")
    assert (code, err) == (0, "")
    assert "LoRA in kohya's names" in out
    assert "1 layers, rank 4, alpha 2" in out
    assert "AutoV3" in out


def test_every_file_of_a_folder_as_json(here: Here, embedded: Path) -> None:
    code, out, _ = here("inspect", str(embedded), "--json")
    assert code == 0
    kinds = {Path(one["file"]).parent.name: one["kind"] for one in json.loads(out)["files"]}
    assert kinds["unet"] == "UNet of a diffusers folder"
    assert kinds["text_encoder"] == "text encoder"
    assert kinds["vae"] == "VAE of a diffusers folder"


def test_what_is_not_there_is_one_line(here: Here, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for word in ("nowhere.safetensors", "empty"):
        code, out, err = here("inspect", word)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert word in err
