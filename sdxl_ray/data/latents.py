"""What frozen parts say about images and captions: VAE posteriors and text states, from a cache or computed live.

The cache holds the posterior's mean and deviation, not a sample of it: every step draws its own latent, as an
uncached run does, and both give the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdxl_ray.config.schema import MaxTokenLength
from sdxl_ray.data.batch_sampler import View, render
from sdxl_ray.data.tensor_cache import TensorCache
from sdxl_ray.errors import RunError
from sdxl_ray.models.base_model import vae_fix
from sdxl_ray.models.text_encoders import encode_captions

#: Raised by hand when the numbers written into a cache change their meaning; old entries are then not found.
CODE_VERSION = 2

TensorRow = dict[str, Tensor]
ReadImage = Callable[[View], Image.Image]


def pixels(image: Image.Image) -> Tensor:
    """RGB image -> fp32 [3, H, W] in [-1, 1]."""
    values_HWC = torch.from_numpy(np.array(image, dtype=np.uint8))
    return values_HWC.permute(2, 0, 1).float() / 127.5 - 1


@torch.no_grad()
def encode_images(vae: Any, images: Iterable[Image.Image], names: Sequence[str]) -> list[TensorRow]:
    """The VAE posterior of each image: fp32 `{"mean": [C, h, w], "std": [C, h, w]}` on the CPU.

    Raises RunError, naming the image, when the VAE overflows: SDXL's own does in fp16.
    """
    rows = []
    device, dtype = vae.device, vae.dtype  # each access walks the modules
    for name, image in zip(names, images, strict=True):
        # One at a time: a 1024 px image already fills a GPU, and a row must not depend on what it was encoded with.
        posterior = vae.encode(pixels(image)[None].to(device, dtype)).latent_dist
        mean, std = posterior.mean[0].float().cpu(), posterior.std[0].float().cpu()
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise RunError(f"the VAE gives NaN for {name} in {dtype}: {vae_fix(vae)}")
        rows.append({"mean": mean.contiguous(), "std": std.contiguous()})
    return rows


def scale_latents(vae_config: Any, latents_BCHW: Tensor) -> Tensor:
    """Raw VAE latents -> the UNet's: by mean and deviation where the config has them, else shift and factor."""
    mean, std = getattr(vae_config, "latents_mean", None), getattr(vae_config, "latents_std", None)
    if mean is not None and std is not None:
        mean_1C11 = torch.tensor(mean, device=latents_BCHW.device).view(1, -1, 1, 1)
        std_1C11 = torch.tensor(std, device=latents_BCHW.device).view(1, -1, 1, 1)
        return (latents_BCHW - mean_1C11) * float(vae_config.scaling_factor) / std_1C11
    return (latents_BCHW - float(getattr(vae_config, "shift_factor", None) or 0.0)) * float(vae_config.scaling_factor)


def caption_key(caption: str) -> str:
    """The key of a caption in a text cache."""
    return hashlib.sha256(caption.encode()).hexdigest()


class LatentSource:
    """Posteriors by view. With a cache every view is there already (see `missing` and `fill`)."""

    def __init__(self, vae: Any, read: ReadImage, cache: TensorCache | None) -> None:
        self._vae, self._read, self._cache = vae, read, cache

    @property
    def folder(self) -> Path | None:
        """Where its cache is, if it has one."""
        return self._cache.folder if self._cache else None

    def get(self, views: Sequence[View]) -> list[TensorRow]:
        """One row per view, in order."""
        return self._cache.read([view.key for view in views]) if self._cache else self._encode(views)

    def missing(self, views: Sequence[View]) -> list[View]:
        """Those that the cache lacks; none without a cache."""
        if self._cache is None:
            return []
        wanted = set(self._cache.missing([view.key for view in views]))
        return [view for view in views if view.key in wanted]

    def fill(self, views: Sequence[View]) -> None:
        """Encode these views into the cache (one file)."""
        assert self._cache is not None
        self._cache.write(zip([view.key for view in views], self._encode(views), strict=True))

    def refresh(self) -> None:
        """See what other processes have written."""
        if self._cache is not None:
            self._cache.refresh()

    def _encode(self, views: Sequence[View]) -> list[TensorRow]:
        images = (render(self._read(view), view) for view in views)
        return encode_images(self._vae, images, [view.image.source for view in views])


class TextSource:
    """States of one frozen text encoder by caption, from a cache that every caption is in, or live."""

    def __init__(
        self,
        tokenizer: Any,
        encoder: Any,
        pooled: bool,
        cache: TensorCache | None,
        max_token_length: MaxTokenLength = 75,
    ) -> None:
        self._tokenizer, self._encoder, self._pooled, self._cache = tokenizer, encoder, pooled, cache
        self._max_token_length = max_token_length

    @property
    def folder(self) -> Path | None:
        """Where its cache is, if it has one."""
        return self._cache.folder if self._cache else None

    def get(self, captions: Sequence[str]) -> list[TensorRow]:
        """`{"hidden": [L, C], "pooled": [P]}` per caption (pooled for encoder 2 only)."""
        return self._cache.read([caption_key(c) for c in captions]) if self._cache else self._encode(captions)

    def missing(self, captions: Sequence[str]) -> list[str]:
        """Those that the cache lacks; none without a cache."""
        if self._cache is None:
            return []
        wanted = set(self._cache.missing([caption_key(c) for c in captions]))
        return [c for c in captions if caption_key(c) in wanted]

    def fill(self, captions: Sequence[str]) -> None:
        """Encode these captions into the cache (one file)."""
        assert self._cache is not None
        self._cache.write(zip([caption_key(c) for c in captions], self._encode(captions), strict=True))

    def refresh(self) -> None:
        """See what other processes have written."""
        if self._cache is not None:
            self._cache.refresh()

    def _encode(self, captions: Sequence[str]) -> list[TensorRow]:
        different = list(dict.fromkeys(captions))  # a subject's images mostly share one prompt
        rows = encode_captions(self._tokenizer, self._encoder, different, self._pooled, self._max_token_length)
        of = dict(zip(different, rows, strict=True))
        return [of[caption] for caption in captions]
