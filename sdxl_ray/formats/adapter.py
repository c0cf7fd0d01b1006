"""An adapter in neutral form: what every file format is read into and written from.

    Adapter({Layer("unet", "mid_block.attentions.0.proj_in"): LowRank(down, up, alpha=8.0)})

A layer is named as in a diffusers folder on disk; text encoders have `text_model.` whatever transformers calls them in
memory. A change's strength is in its `alpha`, as kohya's files have it: scale = alpha / rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

Part = Literal["unet", "text_encoder", "text_encoder_2"]
PARTS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2")


class Layer(NamedTuple):
    """A layer of SDXL: the part, and the module's dotted path as a diffusers folder stores it."""

    part: Part
    module: str


@dataclass(frozen=True)
class LowRank:
    """W + (alpha / r) up down, LoRA's change (arXiv 2106.09685); with a magnitude, DoRA's (arXiv 2402.09353).

    down: [r, in] or [r, in, kh, kw]; up: [out, r] or [out, r, 1, 1]. magnitude: [out], or None. Where it is given, the
    whole sum is scaled to it, row by row.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that this changes."""
        return (*self.up.shape[:1], *self.down.shape[1:])


@dataclass(frozen=True)
class Lycoris:
    """A change of another kind than a low-rank pair, with the tensors of its layer by their names in the file.

    kind: "loha", "lokr", "glora", "oft", "boft", "full", "norm", or "locon" for a low-rank pair that `LowRank` cannot
    hold: with a change of the bias, or with DoRA's magnitudes by input (see `formats.lycoris`).
    """

    kind: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class WordVectors:
    """What a textual inversion has for a word: clip_l [n, C1] and clip_g [n, C2], for text encoders 1 and 2."""

    clip_l: Tensor
    clip_g: Tensor


@dataclass(frozen=True)
class Adapter:
    """Changes by layer, the metadata of the file that they came from, and the words that it brings."""

    layers: Mapping[Layer, LowRank | Lycoris]
    metadata: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, WordVectors] = field(default_factory=dict)

    @property
    def low_rank(self) -> dict[Layer, LowRank]:
        """The layers with low-rank pairs."""
        return {layer: change for layer, change in self.layers.items() if isinstance(change, LowRank)}

    @property
    def lycoris(self) -> dict[Layer, Lycoris]:
        """The layers of all other kinds."""
        return {layer: change for layer, change in self.layers.items() if isinstance(change, Lycoris)}

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that it changes, in SDXL's order."""
        changed = {layer.part for layer in self.layers}
        return tuple(part for part in PARTS if part in changed)


def stabilised(alpha: float, rank: int) -> float:
    """The alpha that gives alpha / sqrt(rank) to readers that divide by the rank (rsLoRA, arXiv 2312.03732)."""
    return alpha * math.sqrt(rank)
