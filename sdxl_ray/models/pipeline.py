"""One way from a base and an artifact to images, for samples, evaluation, serving and export alike.

pipe = load_pipeline(recipe.base, Artifact.open("runs/dog/artifact"), dtype=torch.float32, device="cpu")
images = generate(pipe, ["a photo of sks dog"], seeds=[1], num_inference_steps=30, guidance_scale=7.5)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from sdxl_ray.config.schema import Base, MaxTokenLength
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, Artifact
from sdxl_ray.models.base_model import BaseFiles, load_components, locate, own_memory, vae_fix
from sdxl_ray.models.base_model_files import check_folder
from sdxl_ray.models.noise_schedule import scheduler_overrides
from sdxl_ray.models.text_encoders import align, encode_prompts
from sdxl_ray.models.weight_changes import apply_file
from sdxl_ray.models.weight_loading import loading, require_finite
from sdxl_ray.models.words import add_words, artifact_words, text_widths

ADAPTER = "tuned"


def load_pipeline(
    base: Base, artifact: Artifact | None, *, dtype: torch.dtype, device: torch.device | str
) -> StableDiffusionXLPipeline:
    """The base, or what an artifact made of it, ready to draw (evaluation mode, no gradients).

    A LoRA stays beside the base's weights as the adapter "tuned", or is added into them where PEFT has no layers of
    its kind (`models.weight_changes`); prompts may say its textual inversions (`models.words`). A full artifact is
    loaded by itself: the base's weights need not be on this machine. `base.vae` and `base.vae_precision` hold for both.
    Raises UserError: an artifact of another base, or adapter weights that match no module.
    """
    if artifact is None:
        return _pipeline(locate(base), base, dtype, device)
    require_same_base(base, artifact)
    if artifact.manifest.kind == "full":
        return _load_full(base, artifact, dtype, device)
    pipe = _pipeline(locate(base), base, dtype, device)
    if artifact.word_files:
        add_words(pipe, artifact_words(artifact, text_widths(pipe)), f"artifact {str(artifact.folder)!r}")
    if artifact.in_kohya_alone:
        apply_file(pipe, artifact.folder / KOHYA_WEIGHTS, base, f"artifact {str(artifact.folder)!r}")
    elif LORA_WEIGHTS in artifact.manifest.files or not artifact.word_files:
        _load_lora(pipe, artifact.folder / LORA_WEIGHTS)
    # A full artifact has its own scheduler on disk; an adapter trained for another prediction only has its recipe.
    changes = scheduler_overrides(artifact.manifest.recipe.get("objective", {}))
    pipe.scheduler = type(pipe.scheduler).from_config({**pipe.scheduler.config, **changes})
    return pipe


def generate(
    pipe: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    num_inference_steps: int,
    guidance_scale: float,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 4,
    max_token_length: MaxTokenLength = 75,
    on_image: Callable[[int, Image.Image], None] | None = None,
) -> list[Image.Image]:
    """One image per (prompt, seed), in order.

    An image depends on its prompt, its seed and the settings, not on its neighbours in the batch (up to rounding:
    one 8-bit level in fp32), because each has its own CPU generator and its noise is drawn in fp32. height, width:
    pixels, multiples of 8; default, the base's own size. negative_prompt None: the unconditional prompt (zeros).
    max_token_length: tokens of a prompt that are used at most, in chunks (`core.text`); each prompt has as many chunks
    as it needs, and so has the negative prompt.
    on_image(index, image) is called as images are finished.
    Raises RunError when the UNet or the VAE gives NaN or infinity, naming which and for what.
    """
    if len(prompts) != len(seeds):
        raise UserError(f"{len(prompts)} prompts but {len(seeds)} seeds: give one seed per prompt")
    size_hw = tuple(_edge(pipe, name, value) for name, value in (("height", height), ("width", width)))
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        some = slice(start, start + batch_size)
        latents_BCHW = _denoise(
            pipe,
            prompts[some],
            seeds[some],
            size_hw=size_hw,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            max_token_length=max_token_length,
        )
        _require_finite(latents_BCHW, "UNet", prompts[some], seeds[some], "lower guidance_scale or use precision bf16")
        images_BCHW = decode(pipe.vae, latents_BCHW)
        _require_finite(images_BCHW, "VAE", prompts[some], seeds[some], vae_fix(pipe.vae))
        for image in pipe.image_processor.postprocess(images_BCHW, output_type="pil"):
            if on_image is not None:
                on_image(len(images), image)
            images.append(image)
    return images


@torch.no_grad()
def decode(vae: Any, latents_BCHW: torch.Tensor) -> torch.Tensor:
    """Latents as the UNet sees them -> images_BCHW in [-1, 1], fp32; computed in the VAE's own dtype.

    The pipeline's own decoding cannot be used: it needs a VAE of the UNet's dtype (or fp16 with `force_upcast`).
    """
    config = vae.config
    latents_BCHW = latents_BCHW.float() / config.scaling_factor
    if getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None:
        mean, std = (
            torch.tensor(numbers, device=latents_BCHW.device).view(1, -1, 1, 1)
            for numbers in (config.latents_mean, config.latents_std)
        )
        latents_BCHW = latents_BCHW * std + mean
    elif getattr(config, "shift_factor", None) is not None:
        latents_BCHW = latents_BCHW + config.shift_factor
    with torch.autocast(latents_BCHW.device.type, enabled=False):
        # One at a time: a 1024 px image takes 3 GiB on its way through the fp32 decoder, and a batch gains no speed.
        images = [
            vae.decode(one_1CHW.to(vae.dtype), return_dict=False)[0].float() for one_1CHW in latents_BCHW.split(1)
        ]
    return torch.cat(images)


def _denoise(
    pipe: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    size_hw: tuple[int, ...],
    num_inference_steps: int,
    guidance_scale: float,
    negative_prompt: str | None,
    max_token_length: MaxTokenLength,
) -> torch.Tensor:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    shape = (1, pipe.unet.config.in_channels, *(edge // pipe.vae_scale_factor for edge in size_hw))
    # Drawn in fp32 whatever the pipeline's dtype: another precision must not mean another image.
    noise_BCHW = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # some schedulers remember the last image
    latents_BCHW: torch.Tensor = pipe(
        **_conditioning(pipe, prompts, negative_prompt, guidance_scale > 1, max_token_length),
        height=size_hw[0],
        width=size_hw[1],
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=generators,
        latents=noise_BCHW.to(pipe.unet.dtype),
        output_type="latent",
    ).images
    return latents_BCHW


def _conditioning(
    pipe: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    negative_prompt: str | None,
    guided: bool,
    max_token_length: MaxTokenLength,
) -> dict[str, torch.Tensor]:
    """The pipeline's arguments for these prompts, which it would itself cut after one chunk."""
    states, pooled_BP = encode_prompts(pipe, prompts, max_token_length)
    if not guided or (negative_prompt is None and pipe.config.force_zeros_for_empty_prompt):
        return {"prompt_embeds": align(states), "pooled_prompt_embeds": pooled_BP}  # the pipeline adds the zeros
    # Encoded once a prompt, as the pipeline does: the number of rows decides how a matrix product rounds.
    negative, negative_BP = encode_prompts(pipe, [negative_prompt or ""] * len(prompts), max_token_length)
    negative_BLC, prompt_BLC = align([*negative, *states]).chunk(2)
    return {
        "prompt_embeds": prompt_BLC,
        "pooled_prompt_embeds": pooled_BP,
        "negative_prompt_embeds": negative_BLC,
        "negative_pooled_prompt_embeds": negative_BP,
    }


def _edge(pipe: StableDiffusionXLPipeline, name: str, pixels: int | None) -> int:
    if pixels is None:
        return int(pipe.default_sample_size * pipe.vae_scale_factor)
    if pixels < 8 or pixels % 8:
        raise UserError(f"{name} = {pixels}: images have multiples of 8 pixels, try {max(8, round(pixels / 8) * 8)}")
    return pixels


def _require_finite(
    numbers_BCHW: torch.Tensor, part: str, prompts: Sequence[str], seeds: Sequence[int], fix: str
) -> None:
    finite_B = torch.isfinite(numbers_BCHW).flatten(1).all(dim=1)
    if not bool(finite_B.all()):
        bad = int((~finite_B).nonzero()[0])
        raise RunError(f"the {part} gave NaN or infinity for prompt {prompts[bad]!r}, seed {seeds[bad]}: {fix}")


def require_same_base(base: Base, artifact: Artifact) -> None:
    """Raise UserError when an artifact was made on another base than `base`."""
    made_on = artifact.manifest.base
    # A hub id is its commit: a full artifact then works where the base was never downloaded.
    here = base.revision if base.revision and not Path(base.id).expanduser().exists() else locate(base).revision
    if made_on.revision != here:
        raise UserError(
            f"artifact {str(artifact.folder)!r} was made on base {made_on.id!r} at {made_on.revision[:12]}, "
            f"not on {base.id!r} at {here[:12]}: give that base"
        )


def _load_full(
    base: Base, artifact: Artifact, dtype: torch.dtype, device: torch.device | str
) -> StableDiffusionXLPipeline:
    check_folder(artifact.folder, str(artifact.folder))
    whole = Base(
        id=str(artifact.folder), vae=base.vae, vae_revision=base.vae_revision, vae_precision=base.vae_precision
    )
    files = replace(locate(whole), revision=artifact.hash)
    return _pipeline(files, whole, dtype, device)


def _pipeline(
    files: BaseFiles, base: Base, dtype: torch.dtype, device: torch.device | str
) -> StableDiffusionXLPipeline:
    parts = load_components(files, base, dtype=dtype, device=device)
    if torch.device(device).type == "cpu":
        own_memory(parts.unet, parts.vae, *parts.text_encoders)
    return parts.pipeline()


def _load_lora(pipe: StableDiffusionXLPipeline, file: Path) -> None:
    if not file.is_file():
        raise UserError(f"artifact {str(file.parent)!r} holds no {LORA_WEIGHTS}")
    where = f"artifact {str(file.parent)!r}"
    with loading(f"{where}: {LORA_WEIGHTS} does not fit the base and", "give the base that it was made on"):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=ADAPTER, local_files_only=True)
    models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2}
    require_finite(load_file(file).items(), where, [file])
    stored = {bare_name(name): weight for name, weight in load_file(file).items() if not name.endswith(".alpha")}
    placed = {
        bare_name(f"{part}.{name}".replace(f".{ADAPTER}", "")): weight
        for part, model in models.items()
        for name, weight in model.named_parameters()
        if f".{ADAPTER}" in name
    }
    # The libraries only log names that fit nowhere, and leave random numbers where a weight is missing.
    different = stored.keys() ^ placed.keys()
    if different:
        raise UserError(f"{where}: adapter weights do not match the base's modules, as {min(different)}")
    with torch.no_grad():
        for name, weight in placed.items():
            # transformers does not find DoRA's magnitudes of a text encoder and draws new ones.
            weight.copy_(stored[name])
    for model in models.values():
        model.eval().requires_grad_(False)


def bare_name(name: str) -> str:
    """A weight's name without what differs between versions of transformers and PEFT."""
    return name.replace(".text_model.", ".").removesuffix(".weight")
