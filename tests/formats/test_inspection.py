"""What files are, by their names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdxl_ray.config.recipe import load, override
from sdxl_ray.errors import UserError
from sdxl_ray.formats.diffusers_lora import diffusers_tensors
from sdxl_ray.formats.families import family_of
from sdxl_ray.formats.inspection import inspect
from sdxl_ray.formats.kohya import kohya_tensors
from sdxl_ray.formats.lora_files import write_kohya
from sdxl_ray.formats.metadata import lora_metadata
from sdxl_ray.models.opening import open_artifact
from tests.formats.adapters import ATTENTION, CONVOLUTION, EVERYWHERE, TINY, kohya_file, random_adapter, tiny_names

RECIPE = override(load("tiny_lora"), {"data.subject": "sks robot"})
_BLOCK = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


_SPELT = "LoRA in kohya's (diffusers spelling) names"


def _diffusers() -> dict[str, Tensor]:
    return diffusers_tensors(random_adapter([ATTENTION]))[0]


def _dora() -> dict[str, Tensor]:
    return kohya_tensors(random_adapter([ATTENTION], dora=True), tiny_names())


def _one(name: str, width: int = 4) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.zeros(4, width)}


def _sd15() -> dict[str, Tensor]:
    return {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(4, 768),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.zeros(4),
    }


def saved(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, folder / "x.safetensors", metadata)
    return folder / "x.safetensors"


def test_our_own_file_is_told_whole(tmp_path: Path) -> None:
    adapter = random_adapter(EVERYWHERE, rank=4, alpha=2.0)
    file = tmp_path / "dog.safetensors"
    write_kohya(file, kohya_tensors(adapter, tiny_names()), lora_metadata(adapter, RECIPE))
    found = inspect(file)
    assert found.kind == "LoRA with convolutions (LoCon) in kohya's names"
    assert found.made_on == "tiny"
    assert {name: (part.layers, part.ranks, part.alphas) for name, part in found.parts.items()} == {
        "UNet": (3, (4,), (2.0,)),
        "text encoder 1": (1, (4,), (2.0,)),
        "text encoder 2": (2, (4,), (2.0,)),
    }
    assert "ComfyUI" in found.readers
    assert found.stored_hashes == {"modelspec.hash_sha256": True, "sshs_model_hash": True}
    assert found.hashes["AutoV3"] == found.metadata["sshs_model_hash"][:12]


def test_a_stored_hash_of_other_bytes_is_found(tmp_path: Path) -> None:
    tensors = kohya_tensors(random_adapter([ATTENTION]), tiny_names())
    found = inspect(saved(tmp_path, tensors, {"sshs_model_hash": "e3b0c44298fc" + "0" * 52}))
    assert found.stored_hashes == {"sshs_model_hash": False}


@pytest.mark.parametrize(
    ("tensors", "kind", "reader", "not_in"),
    [
        (_diffusers, "LoRA in diffusers' names", "diffusers", "ComfyUI"),
        (_dora, "DoRA in kohya's names", "A1111 and Forge", "ComfyUI"),
        (_one(f"base_model.model.{ATTENTION.module}.lora_A.weight", 8), "LoRA in PEFT's names", "PEFT", "ComfyUI"),
        (_one(f"lora_unet_{_BLOCK}.lora_down.weight", 2048), _SPELT, "ComfyUI", "PEFT"),
        (_one(f"lora_unet_{_BLOCK}.hada_w1_a"), "LyCORIS (LoHa)", "ComfyUI", "diffusers"),
        (_one(f"lora_unet_{_BLOCK}.lokr_w1"), "LyCORIS (LoKr)", "ComfyUI", "diffusers"),
        (_one(f"lora_unet_{_BLOCK}.on_input"), "LyCORIS (IA3)", None, "sdxl-ray"),
        (lambda: {f"lora_unet_{_BLOCK}.oft_blocks": torch.zeros(2, 4, 4, 4)}, "LyCORIS (BOFT)", "ComfyUI", "diffusers"),
        (_sd15, "whole model in one file", None, "diffusers"),
        (_one("clip_l", 768), "textual inversion", "ComfyUI", "kohya's scripts"),
        (_one("down_blocks.0.resnets.0.conv1.weight"), "UNet of a diffusers folder", None, "ComfyUI"),
        (_one("what.is.this"), "unknown", None, "sdxl-ray"),
    ],
)
def test_kinds(tensors: object, kind: str, reader: str | None, not_in: str, tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, tensors()))  # type: ignore[operator]
    assert found.kind == kind
    assert not_in not in found.readers
    assert reader is None or reader in found.readers


@pytest.mark.parametrize(
    ("tensors", "family"),
    [
        ({f"lora_unet_{_BLOCK}.lora_down.weight": (4, 768)}, "Stable Diffusion 1.x"),
        ({f"lora_unet_{_BLOCK}.lora_down.weight": (4, 1024)}, "Stable Diffusion 2.x"),
        ({f"lora_unet_{_BLOCK}.lora_down.weight": (4, 2048)}, "SDXL"),
        ({"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 1280)}, "the SDXL refiner"),
        ({"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048)}, "SDXL"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)}, "FLUX"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)}, "FLUX"),
        ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 1536)}, "Stable Diffusion 3"),
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768)}, "Stable Diffusion 1.x or 2.x"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280)}, "SDXL"),
        ({"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 192)}, None),
    ],
)
def test_families(tensors: dict[str, tuple[int, ...]], family: str | None) -> None:
    assert family_of({name: {"shape": list(shape)} for name, shape in tensors.items()}) == family


def test_a_lora_of_another_family_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tensors = {
        f"lora_unet_{_BLOCK}.lora_down.weight": torch.zeros(4, 768),
        f"lora_unet_{_BLOCK}.lora_up.weight": torch.zeros(640, 4),
    }
    with pytest.raises(UserError, match=r"is a LoRA of Stable Diffusion 1\.x, and 'tiny' is an SDXL"):
        open_artifact(saved(tmp_path, tensors), TINY)


def test_convolutions_are_said(tmp_path: Path) -> None:
    assert "LoCon" in inspect(kohya_file(tmp_path, random_adapter([CONVOLUTION]))).kind


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04canary")
    (tmp_path / "cut.safetensors").write_bytes(kohya_file(tmp_path, random_adapter([ATTENTION])).read_bytes()[:-4])
    for name, said in (("model.ckpt", "pickle"), ("cut.safetensors", "download it again")):
        with pytest.raises(UserError, match=said) as error:
            inspect(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("alpha", [torch.tensor(float("nan")), torch.zeros(3)])
def test_an_alpha_that_is_no_number_is_named(alpha: Tensor, tmp_path: Path) -> None:
    tensors = {f"lora_unet_{_BLOCK}.lora_down.weight": torch.zeros(4, 8), f"lora_unet_{_BLOCK}.alpha": alpha}
    with pytest.raises(UserError, match=r"alpha holds .*download it again"):
        inspect(saved(tmp_path, tensors))


@pytest.mark.parametrize(
    "header",
    [
        b'{"a.lora_down.weight":{"data_offsets":[0,0]}}',
        b'{"a.lora_down.weight":{"dtype":"F32","shape":"4x4","data_offsets":[0,0]}}',
        b'{"__metadata__":{"ss_sd_model_name":{}}}',
    ],
)
def test_a_header_that_the_format_has_not_is_one_line(header: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="broken header"):
        inspect(file)
