"""What happens to images before an encoder that scores sees them: none of it may matter to a score."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

_RECODED = 0.2  # share that goes through the autoencoder, as whatever the base draws has


def jittered(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Images [B, 3, 64, 64], -1 to 1, with small changes of light, contrast and sharpness, as a generator's have."""
    batch = len(pixels)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (batch, 1, 1, 1)).astype(np.float32)).to(pixels.device)
    shift = torch.from_numpy(rng.uniform(-0.12, 0.12, (batch, 3, 1, 1)).astype(np.float32)).to(pixels.device)
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, np.float32)).to(pixels.device)
    pixels = pixels * gain + shift
    soft = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), "replicate"), 3, 1)
    amount = torch.from_numpy(rng.uniform(0, 0.8, (batch, 1, 1, 1)).astype(np.float32)).to(pixels.device)
    return pixels + amount * (soft - pixels) + 0.04 * noise


@torch.no_grad()
def recoded(pixels: torch.Tensor, rng: np.random.Generator, autoencoder: Any) -> torch.Tensor:
    """Images [B, 3, 64, 64], -1 to 1, a share of them through the base's autoencoder."""
    chosen = torch.from_numpy(rng.random(len(pixels)) < _RECODED).to(pixels.device)
    pixels = pixels.clone()
    pixels[chosen] = autoencoder.decode(autoencoder.encode(pixels[chosen]).latent_dist.mean).sample.clamp(-1, 1)
    return pixels
