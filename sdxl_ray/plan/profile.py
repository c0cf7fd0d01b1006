"""What planning knows of an architecture: counted on the meta device and kept as JSON.

Sizes are polynomials in the latent pixels of one sample, since that is what convolutions (linear) and
self-attention (quadratic) cost, whatever the aspect ratio.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

#: Rank at which a profile measures adapters.
LORA_RANK = 16

TuningMode = Literal["full", "lora", "lora_all"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Polynomial(_Frozen):
    """`constant + linear * latent_pixels + quadratic * latent_pixels ** 2`."""

    constant: int
    linear: int = 0
    quadratic: int = 0

    def at(self, latent_pixels: int) -> int:
        return self.constant + self.linear * latent_pixels + self.quadratic * latent_pixels**2


class Bytes(_Frozen):
    """Memory of a forward, or a forward and backward, in 2-byte precision.

    `fixed + batch * (per_sample + per_latent_pixel * latent_pixels)`; twice that in fp32.
    """

    fixed: int
    per_sample: int
    per_latent_pixel: float

    def at(self, batch: int, latent_pixels: int, width: int = 2) -> int:
        """Bytes for a batch of that many samples of that size, with numbers `width` bytes wide."""
        total = self.fixed + batch * (self.per_sample + self.per_latent_pixel * latent_pixels)
        return max(0, round(total * width / 2))


class LayerProfile(_Frozen):
    """A linear or convolution layer, as LoRA sees it. kernel: rows x columns of the kernel, 1 for a linear layer."""

    inputs: int
    outputs: int
    kernel: int
    names: tuple[str, ...]

    def lora_parameters(self, rank: int, dora: bool) -> int:
        """Scalars of one adapter: A [r, in, k], B [out, r] and, for DoRA, one magnitude per output."""
        return rank * (self.inputs * self.kernel + self.outputs) + (self.outputs if dora else 0)


class Component(_Frozen):
    """One part of the pipeline. dead: parameters of text encoder 1 whose output SDXL never reads (they never train).

    dead_prefixes: the modules those are in.
    """

    parameters: int
    tensors: int
    dead: int = 0
    dead_prefixes: tuple[str, ...] = ()
    layers: tuple[LayerProfile, ...]

    def adapted(self, targets: tuple[str, ...]) -> Iterator[tuple[LayerProfile, str]]:
        """The layers that targets name by their tail, without the dead ones."""
        tails = tuple(f".{target}" for target in targets)
        for layer in self.layers:
            for name in layer.names:
                if (name in targets or name.endswith(tails)) and not name.startswith(self.dead_prefixes or ("\0",)):
                    yield layer, name


class Segment(_Frozen):
    """A stretch of forward and backward: the most memory that is live in it, and the gradients that exist at its end.

    gradients: share (0-1) of the trained scalars whose gradient has been produced by then.
    """

    gradients: float
    live: Bytes


class TrainingProfile(_Frozen):
    """Forward and backward of one part in one mode: FLOP of one sample and live bytes.

    LoRA is counted at rank 16 (lora: attention, lora_all: every layer); per_rank is what one more rank adds.
    """

    mode: TuningMode
    checkpointing: bool
    flop: Polynomial
    per_rank_flop: Polynomial
    segments: tuple[Segment, ...]
    per_rank: Bytes


class ModelProfile(_Frozen):
    """Everything counted of one architecture.

    flop: of one forward by name (unet, vae_encode, vae_decode, text_encoder, text_encoder_2); inference: live bytes of
    the same forwards without gradients; training: by component.
    """

    format: Literal[1] = 1
    name: str
    key: str
    native_latent: int
    vae_factor: int
    text_tokens: int
    components: dict[str, Component]
    flop: dict[str, Polynomial]
    inference: dict[str, Bytes]
    training: dict[str, tuple[TrainingProfile, ...]]

    def parameters(self) -> int:
        """Scalars of the whole pipeline."""
        return sum(part.parameters for part in self.components.values())

    def train(self, component: str, mode: TuningMode, checkpointing: bool) -> TrainingProfile:
        """The record of one mode."""
        return next(t for t in self.training[component] if t.mode == mode and t.checkpointing == checkpointing)


def rank_of(name: str, rank: int, patterns: dict[str, int]) -> int:
    """The rank PEFT gives a layer: of the first pattern that matches a whole tail of its name, else the default."""
    return next((r for pattern, r in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), rank)
