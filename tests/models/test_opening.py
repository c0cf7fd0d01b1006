"""Other tools' files used as artifacts: imported once, drawn as diffusers draws them, refused with one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Adapter
from sdxl_ray.formats.diffusers_lora import diffusers_tensors
from sdxl_ray.formats.kohya import kohya_tensors
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, Artifact
from sdxl_ray.models import importing
from sdxl_ray.models.opening import open_artifact
from sdxl_ray.models.pipeline import generate, load_pipeline
from tests.formats.adapters import ATTENTION, CONVOLUTION, EVERYWHERE, TINY, kohya_file, random_adapter, tiny_names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sdxl_ray"


def drawn(pipe: object) -> np.ndarray:
    images = generate(pipe, ["a photo of a robot"], seeds=[1], num_inference_steps=2, guidance_scale=1.0)  # type: ignore[arg-type]
    return np.asarray(images[0], dtype=np.int16)


def by_artifact(artifact: Artifact | None) -> np.ndarray:
    return drawn(load_pipeline(TINY, artifact, dtype=torch.float32, device="cpu"))


def by_diffusers(file: Path) -> np.ndarray:
    pipe = load_pipeline(TINY, None, dtype=torch.float32, device="cpu")
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="foreign")
    return drawn(pipe)


def test_an_imported_lora_draws_what_diffusers_draws_with_it(tmp_path: Path) -> None:
    """alpha is not the rank, and all three parts are changed: everything that imports get wrong."""
    file = kohya_file(tmp_path, random_adapter(EVERYWHERE, rank=4, alpha=2.0))
    artifact = open_artifact(file, TINY)
    assert artifact.manifest.origin is not None
    assert artifact.manifest.origin["file"] == "foreign.safetensors"
    ours, base = by_artifact(artifact), by_artifact(None)
    assert abs(ours - by_diffusers(artifact.folder / LORA_WEIGHTS)).max() <= 1
    assert abs(ours - base).max() > 20
    # diffusers' own reader of kohya's names takes the diffusers spelling of the UNet only.
    spelt = {
        name.replace(tiny_names().kohya(layer), "lora_unet_" + layer.module.replace(".", "_")): value
        for layer in (ATTENTION, CONVOLUTION)
        for name, value in load_file(file).items()
        if name.startswith(tiny_names().kohya(layer) + ".")
    }
    save_file(spelt, tmp_path / "spelt.safetensors")
    assert (
        abs(
            by_artifact(open_artifact(tmp_path / "spelt.safetensors", TINY))
            - by_diffusers(tmp_path / "spelt.safetensors")
        ).max()
        <= 1
    )


def test_a_file_is_imported_once_and_again_when_it_changes(tmp_path: Path, cache: Path) -> None:
    file = kohya_file(tmp_path, random_adapter([ATTENTION]))
    first = open_artifact(file, TINY)
    assert open_artifact(file, TINY).folder == first.folder
    kohya_file(tmp_path, random_adapter([ATTENTION], seed=5))
    assert open_artifact(file, TINY).folder != first.folder
    assert len(list((cache / "imports").iterdir())) == 2


def test_what_we_write_is_read_back_the_same(tmp_path: Path) -> None:
    file = kohya_file(tmp_path, random_adapter(EVERYWHERE, rank=4, alpha=2.0))
    artifact = open_artifact(file, TINY)
    original = load_file(file)
    for name in (KOHYA_WEIGHTS, LORA_WEIGHTS):
        again = open_artifact(shutil.copy(artifact.folder / name, tmp_path / f"copy-{name}"), TINY)
        stored = load_file(again.folder / KOHYA_WEIGHTS)
        assert stored.keys() == original.keys()
        assert all(torch.equal(stored[key].float(), original[key].float()) for key in stored)


def test_a_peft_folder_has_its_alpha_in_a_json_file(tmp_path: Path) -> None:
    adapter = random_adapter([ATTENTION], rank=4, alpha=12.0)
    folder = tmp_path / "peft"
    folder.mkdir()
    tensors = {f"base_model.model.{key.removeprefix('unet.')}": v for key, v in diffusers_tensors(adapter)[0].items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 12}))
    artifact = open_artifact(folder, TINY)
    assert artifact.manifest.recipe["tuning"]["alpha"] == 12.0
    assert float(load_file(artifact.folder / KOHYA_WEIGHTS)[f"{tiny_names().kohya(ATTENTION)}.alpha"]) == 12.0


def test_partly_known_files_are_refused_unless_asked_for(tmp_path: Path) -> None:
    tensors = kohya_tensors(random_adapter([ATTENTION]), tiny_names())
    file = tmp_path / "half.safetensors"
    save_file({**tensors, "lora_unet_input_blocks_8_1_proj_in.lora_down.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"1 of 4 tensors fit no layer .*input_blocks_8_1_proj_in.*--allow-partial"):
        open_artifact(file, TINY)
    notes: list[str] = []
    artifact = open_artifact(file, TINY, allow_partial=True, on_note=notes.append)
    assert "1 of 4 tensors" in notes[0]
    assert artifact.manifest.origin is not None
    assert artifact.manifest.origin["unused_tensors"] == 1


def test_refusals_leave_nothing_behind(tmp_path: Path, cache: Path) -> None:
    nothing_fits = tmp_path / "flux.safetensors"
    save_file({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(4, 4)}, nothing_fits)
    pickle = tmp_path / "lora.pt"
    pickle.write_bytes(b"\x80\x04canary")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(kohya_file(tmp_path, random_adapter([ATTENTION])).read_bytes()[:-10])
    for source, said in (
        (nothing_fits, "is a LoRA of FLUX"),
        (pickle, "pickle"),
        (cut, "download it again"),
        (tmp_path / "nowhere", "no such folder"),
    ):
        with pytest.raises(UserError, match=said):
            open_artifact(source, TINY)
    assert not (cache / "imports").exists()


def test_a_lora_of_an_unknown_base_asks_for_it(tmp_path: Path) -> None:
    file = kohya_file(tmp_path, random_adapter([ATTENTION]))
    with pytest.raises(UserError, match="--base"):
        open_artifact(file)
    save_file(load_file(file), file, {"ss_sd_model_name": "tiny"})
    assert open_artifact(file).manifest.base.id == "tiny"


def test_an_import_into_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    file = kohya_file(tmp_path, random_adapter([ATTENTION]))
    artifact = importing.import_model(
        file, Base(id="tiny"), tmp_path / "out" / "mine", allow_partial=False, on_note=print
    )
    assert Artifact.open(tmp_path / "out" / "mine").hash == artifact.hash
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine"]


def test_an_adapter_without_layers_is_no_adapter() -> None:
    assert Adapter({}).parts == ()
