"""A whole SDXL with random weights, made on the device: true shapes for speed and memory, nothing to look at."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdxl_ray.plan.architecture import sdxl_configs
from sdxl_ray.tiny._build.layout import configs as tiny_configs
from sdxl_ray.tiny.vocabulary import END, bpe


def random_pipeline(
    shape: Literal["tiny", "sdxl"], device: torch.device, width: torch.dtype
) -> StableDiffusionXLPipeline:
    """UNet and text encoders in `width`, the VAE in fp32, all on `device`, in evaluation mode and frozen.

    The tokenizers are the embedded base's: the words of real ones would be other numbers below the same limit.
    """
    configs: dict[str, Any] = sdxl_configs() if shape == "sdxl" else tiny_configs()
    torch.manual_seed(0)
    makers: dict[str, Any] = {
        "unet": lambda: UNet2DConditionModel.from_config(configs["unet"]),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"])),
        "vae": lambda: AutoencoderKL.from_config(configs["vae"]),
    }
    parts: dict[str, Any] = {}
    for name, make in makers.items():
        with torch.device(device):
            model = make()
        # Sequentially and each cast at once: the fp32 UNet of SDXL alone takes 10 GB until it is.
        parts[name] = model.to(torch.float32 if name == "vae" else width).eval().requires_grad_(False)
    tokens = int(configs["text_encoder"]["max_position_embeddings"])
    return StableDiffusionXLPipeline(
        **parts,
        tokenizer=_tokenizer(tokens, END),
        tokenizer_2=_tokenizer(tokens, "!"),
        # Both bases have SDXL's own noise schedule.
        scheduler=EulerDiscreteScheduler.from_config(tiny_configs()["scheduler"]),
        add_watermarker=False,
    )


def _tokenizer(tokens: int, pad: str) -> CLIPTokenizer:
    vocabulary, merges = bpe()
    made = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=tokens)
    with tempfile.TemporaryDirectory() as folder:  # a tokenizer that was never saved has no name for some settings
        made.save_pretrained(Path(folder))
        loaded: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return loaded
