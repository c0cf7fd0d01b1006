"""Writes trained models as the folders that are shipped: weights in fp16 that every library loads as fp32.

diffusers loads a file of any precision into a module of fp32 unless it is told otherwise; transformers 5 takes the
`dtype` of config.json, which therefore says float32 here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_ray.formats.diffusers_folder import make_readable
from sdxl_ray.tiny._build.layout import MAX_TOKENS, MODEL_INDEX, configs
from sdxl_ray.models.quiet_libraries import quiet_libraries
from sdxl_ray.tiny.vocabulary import END, bpe

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Pixels in [0, 255] become numbers in [-1, 1]; read by the CLIP and ViT image processors, with or without torchvision.
_NORMALISED = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
}
_BICUBIC = 3  # Pillow's number
_PRIVATE = ("_name_or_path", "_pre_quantization_dtype")


def write_base(folder: Path, vae: nn.Module, unet: nn.Module, text_encoder: nn.Module, text_encoder_2: Any) -> None:
    """Write a plain diffusers folder of SDXL.

    Raises ValueError when a model is not the one that `layout` describes, or a weight is beyond fp16.
    """
    from diffusers import EulerDiscreteScheduler

    planned = configs()
    for name, model in (("vae", vae), ("unet", unet)):
        _write_diffusers(folder / name, model, planned[name])
    for name, model in (("text_encoder", text_encoder), ("text_encoder_2", text_encoder_2)):
        _write_transformers(folder / name, model, planned[name])
    EulerDiscreteScheduler.from_config(planned["scheduler"]).save_pretrained(folder / "scheduler")
    _write_tokenizer(folder / "tokenizer", END)
    _write_tokenizer(folder / "tokenizer_2", "!")
    _write_json(folder / "model_index.json", MODEL_INDEX)
    make_readable(folder)
    _share(folder)


def write_clip(folder: Path, clip_model: Any) -> None:
    """Write a `transformers.CLIPModel` with the tokenizer of the base's first text encoder. Errors as `write_base`."""
    edge = clip_model.config.vision_config.image_size
    _write_transformers(folder, clip_model, {})
    _write_tokenizer(folder, END)
    _write_json(
        folder / "preprocessor_config.json",
        {
            **_NORMALISED,
            "crop_size": {"height": edge, "width": edge},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "image_processor_type": "CLIPImageProcessor",
            "resample": _BICUBIC,
            "size": {"shortest_edge": edge},
        },
    )
    _share(folder)


def write_identity(folder: Path, vit_model: Any) -> None:
    """Write a `transformers.ViTModel`, made without pooler, which its class draws anew when it is asked for.

    Errors as `write_base`.
    """
    if vit_model.pooler is not None:
        raise ValueError("the identity encoder has a pooler: make it with add_pooling_layer=False")
    edge = vit_model.config.image_size
    _write_transformers(folder, vit_model, {})
    _write_json(
        folder / "preprocessor_config.json",
        {
            **_NORMALISED,
            "do_convert_rgb": True,
            "image_processor_type": "ViTImageProcessor",
            "resample": _BICUBIC,
            "size": {"height": edge, "width": edge},
        },
    )
    _share(folder)


def _write_diffusers(folder: Path, model: Any, planned: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    model.save_config(folder)
    _settle_config(folder / "config.json", planned)
    save_file(_halves(model), folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def _write_transformers(folder: Path, model: Any, planned: dict[str, Any]) -> None:
    with quiet_libraries():
        # Its own writer, since it turns the names of a module's weights into those that files have.
        model.save_pretrained(folder, state_dict=_halves(model))
    _settle_config(folder / "config.json", {**planned, "dtype": "float32"}, given=("dtype",))


def _halves(model: nn.Module) -> dict[str, Tensor]:
    import torch

    halves = {}
    for name, weight in model.state_dict().items():
        half = weight.detach().to("cpu", torch.float16 if weight.is_floating_point() else weight.dtype).contiguous()
        if not bool(torch.isfinite(half).all()):
            raise ValueError(f"{name} has weights that are not finite in fp16, which reaches to 65504")
        halves[name] = half
    return halves


def _settle_config(file: Path, planned: dict[str, Any], given: tuple[str, ...] = ()) -> None:
    """Hold a config that a library wrote to what was planned; `given` is put in instead.

    The folder a model was once loaded from says nothing to others, and parts of a model take the dtype of the whole.
    """
    written = json.loads(file.read_text())
    for key, value in planned.items():
        if key not in given and written.get(key) != value:
            raise ValueError(f"{file.parent.name}: {key} is {written.get(key)!r}, the layout says {value!r}")
    kept = {key: value for key, value in written.items() if key not in _PRIVATE}
    for part in ("text_config", "vision_config"):
        if part in kept:
            kept[part] = {key: value for key, value in kept[part].items() if key not in (*_PRIVATE, "dtype")}
    _write_json(file, {**kept, **{key: planned[key] for key in given}})


def _write_tokenizer(folder: Path, pad: str) -> None:
    from transformers import CLIPTokenizer

    vocabulary, merges = bpe()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)


def _write_json(file: Path, plain: dict[str, Any]) -> None:
    file.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")


def _share(folder: Path) -> None:
    """Let everybody read: safetensors makes files private, and a wheel keeps that."""
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
