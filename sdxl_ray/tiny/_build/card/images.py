"""Draws the card's images: the pipeline that everybody uses, at the settings that the card states."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdxl_ray.io.artifact import Artifact
from sdxl_ray.models.pipeline import generate, load_pipeline
from sdxl_ray.config.schema import Base

STEPS, GUIDANCE, BATCH = 20, 4.0, 16


class Drawer:
    """One model: the base (artifact None) or what an artifact made of it."""

    def __init__(self, artifact: Path | None = None) -> None:
        opened = None if artifact is None else Artifact.open(artifact)
        self._pipe = load_pipeline(Base(id="tiny"), opened, dtype=torch.float32, device="cpu")

    def draw(self, prompts: list[str], batch_size: int = BATCH) -> list[Image.Image]:
        """One image a prompt; the seed is the prompt's place in the list."""
        return generate(
            self._pipe,
            prompts,
            seeds=range(len(prompts)),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            batch_size=batch_size,
        )

    @torch.inference_mode()
    def recoded(self, images: list[Image.Image]) -> list[Image.Image]:
        """RGB images of one size through the autoencoder and back."""
        pixels_BHWC = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        vae = self._pipe.vae
        coded = vae.decode(vae.encode(pixels_BHWC.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean).sample
        shown = ((coded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(image) for image in shown]

    def rate(self, batch_size: int, images: int) -> float:
        """Images a second, after a first batch that does not count."""
        prompts = ["a photo of a frog on a beach"] * images
        self.draw(prompts[:batch_size], batch_size)
        begun = time.monotonic()
        self.draw(prompts, batch_size)
        return images / (time.monotonic() - begun)
