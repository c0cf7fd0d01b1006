"""What a folder or a file is that is no SDXL, and what to give instead: known by the names of its tensors and files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sdxl_ray.io.artifact import MANIFEST
from sdxl_ray.io.safetensors_files import PICKLES, read_json

#: The base that most people mean, at one commit for ever.
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"
GIVE_SDXL = f"give an SDXL, for example base={SDXL} base.revision={SDXL_COMMIT}"
_MADE_ON = "give the base that it was made on"

_FAMILIES = {
    "StableDiffusionPipeline": "Stable Diffusion 1.x or 2.x",
    "StableDiffusionImg2ImgPipeline": "Stable Diffusion 1.x or 2.x",
    "StableDiffusionInpaintPipeline": "an inpainting Stable Diffusion 1.x or 2.x",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "FluxPipeline": "FLUX",
    "PixArtAlphaPipeline": "PixArt",
    "PixArtSigmaPipeline": "PixArt",
    "KolorsPipeline": "Kolors",
    "AuraFlowPipeline": "AuraFlow",
    "SanaPipeline": "Sana",
    "QwenImagePipeline": "Qwen-Image",
    "StableCascadeCombinedPipeline": "Stable Cascade",
}
_SAME_PARTS = ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")


def of_pipeline(index: Mapping[str, Any]) -> str:
    """A pipeline's kind by its `model_index.json`, and the fix."""
    name = index.get("_class_name")
    if not isinstance(name, str):
        return f"made for {name!r}: {GIVE_SDXL}"
    if name in _SAME_PARTS and index.get("text_encoder") not in (None, [None, None]):
        return f"saved as {name}: where its UNet has 4 input channels, put StableDiffusionXLPipeline there"
    if name == "StableDiffusionXLImg2ImgPipeline":
        return f"the SDXL refiner, which has no first text encoder: {GIVE_SDXL}"
    return f"{_FAMILIES.get(name, f'made for {name!r}')}: {GIVE_SDXL}"


def of_folder(folder: Path) -> str:
    """What a folder without `model_index.json` is, as the end of a sentence that begins with its name; it may be ""."""
    return next(filter(None, (kind(folder) for kind in (_artifact, _lora, _neighbour, _one_model, _single_file))), "")


def of_header(header: Mapping[str, Any], encoders: set[str]) -> str:
    """What a single file is that has not all of SDXL, and the fix; `encoders` are the text encoders that it has."""
    for known, what in _SINGLE:
        if any(known(name) for name in header):
            return what
    if "model.diffusion_model.label_emb.0.0.weight" in header:
        missing = [part for part, number in (("text_encoder", "0"), ("text_encoder_2", "1")) if number not in encoders]
        return f"a part of one, without {' and '.join(missing)}: give the whole checkpoint"
    example = next(iter(sorted(header)), "nothing")
    return f"something else (its first tensor is {json.dumps(example)}): give a whole SDXL checkpoint"


def _artifact(folder: Path) -> str | None:
    if not (folder / MANIFEST).is_file():
        return _run(folder)
    manifest = read_json(folder / MANIFEST)
    base = manifest.get("base")
    if not isinstance(base, dict) or "id" not in base:
        return None
    if manifest.get("kind") == "lora":
        merge = shlex.join(["sdxl-ray", "merge", str(folder), "--into", "model", "--out", "MODEL"])
        return f"it is a LoRA on base {base['id']!r}: give that base, or make a model of both first: {merge}"
    return f"it is the artifact of a run on base {base['id']!r}: give that base, and the artifact to generate or serve"


def _run(folder: Path) -> str | None:
    """A run's folder, whose artifact is one level down; `_neighbour` names a whole model there."""
    inside = folder / "artifact"
    whole = (inside / "model_index.json").is_file()
    return _artifact(inside) if (inside / MANIFEST).is_file() and not whole else None


def _lora(folder: Path) -> str | None:
    names = ("adapter_config.json", "pytorch_lora_weights.safetensors")
    return f"it holds a LoRA: {_MADE_ON}" if any((folder / name).is_file() for name in names) else None


def _neighbour(folder: Path) -> str | None:
    """One level too high, also in the hub's cache, or one too low."""
    below = [file.parent for pattern in ("*", "snapshots/*") for file in folder.glob(f"{pattern}/model_index.json")]
    if below:
        return f"did you mean {str(min(below))!r} inside it?"
    above = (folder.parent / "model_index.json").is_file()
    return f"it is one part of a pipeline: give {str(folder.parent)!r}" if above else None


def _one_model(folder: Path) -> str | None:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    kind = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if kind is None:
        return None
    if str(kind).startswith("Autoencoder"):
        return f"it is a VAE ({kind}) alone: set base.vae to it, and base to an SDXL"
    return f"it is one model, {kind}, and no whole pipeline: {GIVE_SDXL}"


def _single_file(folder: Path) -> str | None:
    single = sorted(file.name for file in folder.glob("*.safetensors"))
    if single:
        return f"or the single file {single[0]} inside it"
    pickled = any(file.suffix in PICKLES for file in folder.iterdir())
    return "the pickled weights in it are never loaded" if pickled else None


def _begins(*heads: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(heads)


def _holds(*parts: str) -> Callable[[str], bool]:
    return lambda name: any(part in name for part in parts)


_LORA = _holds(".lora_", ".hada_", ".lokr_", ".dora_scale", "lora_magnitude_vector")

#: How a tensor's name gives a file away, most certain first.
_SINGLE: Iterable[tuple[Callable[[str], bool], str]] = (
    (
        lambda name: name.startswith(("lora_", "unet.", "text_encoder.")) or _LORA(name),
        f"a LoRA: a base is the whole model it was made on, {_MADE_ON}",
    ),
    (
        _begins("control_model.", "controlnet_", "input_hint_block.", "lllite_"),
        f"a ControlNet, which steers a model and is none: {GIVE_SDXL}",
    ),
    (_begins("ip_adapter.", "image_proj."), f"an IP-Adapter, which steers a model and is none: {GIVE_SDXL}"),
    (
        lambda name: name in ("clip_l", "clip_g", "emb_params") or name.startswith("<"),
        f"a textual inversion (an embedding of one word): {_MADE_ON}",
    ),
    (_begins("conditioner.embedders.0.model."), f"the SDXL refiner, which has no first text encoder: {GIVE_SDXL}"),
    (
        _begins("cond_stage_model."),
        f"Stable Diffusion 1.x or 2.x, which has one text encoder and other layers: {GIVE_SDXL}",
    ),
    (_begins("model.diffusion_model.joint_blocks.", "joint_blocks."), f"Stable Diffusion 3: {GIVE_SDXL}"),
    (_holds("double_blocks.", "single_transformer_blocks."), f"FLUX: {GIVE_SDXL}"),
    (
        _begins("down_blocks.", "conv_in.", "time_embedding."),
        "a UNet alone, in diffusers' names: give the folder of the whole pipeline, or the whole checkpoint",
    ),
    (
        _begins("encoder.down", "decoder.up", "decoder.conv_in", "quant_conv."),
        "a VAE alone: set base.vae to its diffusers folder, and base to an SDXL",
    ),
    (_begins("text_model.", "text_projection."), "a text encoder alone: give the whole checkpoint"),
)
