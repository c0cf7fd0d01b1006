"""EngineSettings: how an engine uses its device. None of them changes what is drawn beyond rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sdxl_ray.config.schema import PositiveInt, Section

if TYPE_CHECKING:
    import torch


class EngineSettings(Section):
    """How one replica generates images; null: what suits the device."""

    device: str | None = Field(None, description="cpu, cuda, cuda:1; null: a GPU if there is one")
    dtype: Literal["fp32", "bf16"] | None = Field(
        None,
        description="number format of UNet and text encoders; null: bf16 on a GPU, fp32 on a CPU, where bf16 is "
        "slower. The VAE has base.vae_precision",
    )
    max_batch: PositiveInt = Field(
        8,
        description="images of one size denoised together in one step. At 1024 pixels a GPU gains up to about 8; "
        "beyond that only latency grows",
    )
    max_cached_adapters: PositiveInt = Field(
        8, description="adapters kept on the device; the least recently used one that no running image uses is evicted"
    )
    channels_last: bool | None = Field(None, description="memory layout of UNet and VAE; null: on a GPU")
    compile: bool | None = Field(
        None,
        description="torch.compile of the UNet's transformer blocks before the replica is ready; null: on a GPU",
    )
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        (),
        description="[height, width] in pixels that are warmed up and compiled for; other sizes work uncompiled. "
        "Empty: the base's own size",
    )
    cached_prompts: Annotated[int, Field(ge=0)] = Field(64, description="encoded prompts kept on the device")

    @property
    def place(self) -> torch.device:
        """The device."""
        import torch

        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.place.type == "cuda"

    @property
    def width(self) -> torch.dtype:
        """Number format of UNet and text encoders."""
        import torch

        return torch.bfloat16 if (self.dtype or ("bf16" if self.on_gpu else "fp32")) == "bf16" else torch.float32

    @property
    def compiled(self) -> bool:
        """Whether the UNet's blocks are compiled."""
        return self.on_gpu if self.compile is None else self.compile

    @property
    def in_channels_last(self) -> bool:
        """Whether UNet and VAE lie channels-last."""
        return self.on_gpu if self.channels_last is None else self.channels_last
