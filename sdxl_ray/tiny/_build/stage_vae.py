"""Stage "vae": the autoencoder, then its decoder alone. arXiv 2112.10752 without the discriminator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from sdxl_ray.tiny._build.session import Session
from sdxl_ray.tiny._build.scene_store import Store

_BATCH = 8
_KL = 4e-4
_EDGES = 0.2


def images(store: Store, index: Any, device: str = "cpu") -> torch.Tensor:
    """[B, 3, 64, 64] in -1 to 1."""
    pixels = torch.from_numpy(np.ascontiguousarray(store.pixels[np.sort(index)]))
    return pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(session: Session, store: Store, device: str, decoder_only: bool = False) -> None:
    vae: Any = session.model
    for step in session:
        rng = np.random.default_rng([5, step, session.rank, int(decoder_only)])
        torch.manual_seed(int(rng.integers(2**31)))
        truth = images(store, rng.choice(len(store), _BATCH, replace=False), device)
        with torch.set_grad_enabled(not decoder_only):
            posterior = vae.encode(truth).latent_dist
        made = vae.decode(posterior.sample()).sample
        error = made - truth
        edges = sum(functional.l1_loss(_slope(made, dim), _slope(truth, dim)) for dim in (2, 3))
        loss = error.abs().mean() + 2 * error.square().mean() + _EDGES * edges
        if not decoder_only:
            loss = loss + _KL * posterior.kl().mean() / posterior.mean[0].numel()
        # Pixels span -1 to 1: the peak is 2.
        decibels = 10 * float(torch.log10(4 / error.detach().square().mean()))
        session.update(loss, _BATCH, dB=decibels, std=float(posterior.std.detach().mean()))


@torch.no_grad()
def encode_all(vae: Any, store: Store, device: str, batch: int = 250) -> tuple[torch.Tensor, torch.Tensor]:
    """(means, standard deviations) of every scene, fp16 [N, 4, 16, 16]."""
    rows = [
        vae.encode(images(store, range(at, min(at + batch, len(store))), device)).latent_dist
        for at in range(0, len(store), batch)
    ]
    return torch.cat([row.mean.half().cpu() for row in rows]), torch.cat([row.std.half().cpu() for row in rows])


@torch.no_grad()
def normalise(vae: Any, means: torch.Tensor) -> None:
    """Fold each latent channel's mean and deviation into the 1 x 1 convolutions beside it: exact, factor 1.0 after."""
    mean, deviation = means.float().mean((0, 2, 3)), means.float().std((0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2 * deviation.log()  # the posterior's log-variance shrinks with it
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= deviation[None, :, None, None]


def _slope(image: torch.Tensor, dim: int) -> torch.Tensor:
    return image.diff(dim=dim)
