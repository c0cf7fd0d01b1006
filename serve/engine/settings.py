"""EngineSettings: how an engine uses its device. None of them changes what is drawn beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from sdxl_ray.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class EngineSettings:
    """Settings of one engine; None means: what suits the device.

    device: "cpu", "cuda", "cuda:1"; None: a GPU if there is one.
    dtype: of UNet and text encoders. None: bf16 on a GPU (half the bytes, twice the rate or more; fp16 has the same
        speed but overflows), fp32 on a CPU (where bf16 is slower). The VAE has `base.vae_precision`.
    max_batch: images of one size in one UNet call. A GPU gains up to about 8 at 1024 px, then only latency grows.
    max_cached_adapters: adapters kept on the device; the least recently used one that no image in flight uses goes.
    fuse: name of an adapter that is merged into the weights for good: no work per step, but every image has it.
    channels_last: memory layout of UNet and VAE. None: on a GPU, whose tensor cores convolve in it without transposing.
    compile: `torch.compile` of the UNet's transformer blocks. None: on a GPU; on a CPU its minutes of start do not pay.
    sizes: (height, width) in pixels that are warmed up, and compiled for, before the engine is ready; other sizes work,
        uncompiled. Empty: the base's own size.
    cached_prompts: encoded prompts kept on the device; side by side comparisons and grids repeat theirs.
    """

    device: str | None = None
    dtype: Literal["fp32", "bf16"] | None = None
    max_batch: int = 8
    max_cached_adapters: int = 8
    fuse: str | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    cached_prompts: int = 64

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_cached_adapters"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: give at least 1")
        if self.cached_prompts < 0:
            raise UserError(f"cached_prompts = {self.cached_prompts}: give 0 or more")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r}: choose from {', '.join(DTYPES)}")

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.place.type == "cuda"

    @property
    def width(self) -> torch.dtype:
        """Number format of UNet and text encoders."""
        return DTYPES[self.dtype] if self.dtype else (torch.bfloat16 if self.on_gpu else torch.float32)

    @property
    def compiled(self) -> bool:
        """Whether the UNet's blocks are compiled."""
        return self.on_gpu if self.compile is None else self.compile

    @property
    def in_channels_last(self) -> bool:
        """Whether UNet and VAE lie channels-last."""
        return self.on_gpu if self.channels_last is None else self.channels_last
