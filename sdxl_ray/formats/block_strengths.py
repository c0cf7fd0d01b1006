"""Strength by block: `down`, `mid`, `up`, a text encoder, a single block as `down_blocks.1` or as a single file has it.

strengths = BlockStrengths({"up": 0.2, "up_blocks.0.attentions.1": 1})
strengths.of(Layer("unet", "up_blocks.0.resnets.0.conv1"), names)     # 0.2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sdxl_ray.errors import UserError, nearest
from sdxl_ray.formats.adapter import PARTS, Layer
from sdxl_ray.formats.layer_names import LayerNames

#: Short names of groups of blocks; text encoders go by the names of their parts.
GROUPS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


@dataclass(frozen=True)
class BlockStrengths:
    """Factors by the beginning of a layer's name; the longest that fits holds, and 1 where none does."""

    strengths: Mapping[str, float] = field(default_factory=dict)

    def of(self, layer: Layer, names: LayerNames) -> float:
        """The strength of a layer."""
        fitting = [name for name in self.strengths if _fits(name, layer, names)]
        return self.strengths[max(fitting, key=_length)] if fitting else 1.0

    def require_known(self, layers: Iterable[Layer], names: LayerNames) -> None:
        """Raise UserError for a name that begins the name of none of `layers`."""
        layers = list(layers)
        for name in self.strengths:
            if not any(_fits(name, layer, names) for layer in layers):
                blocks = {".".join(layer.module.split(".")[:2]) for layer in layers if layer.part == "unet"}
                known = {*GROUPS, *PARTS[1:], *blocks}
                raise UserError(f"blocks: {name!r} is no block with a layer of these adapters: {nearest(name, known)}")


def _length(name: str) -> int:
    return len(GROUPS.get(name, name))


def _fits(name: str, layer: Layer, names: LayerNames) -> bool:
    if layer.part != "unet":
        return name == layer.part
    prefix = GROUPS.get(name, name)
    spelt = (layer.module, names.sgm.to_sgm(layer.module) or "")
    return any(module == prefix or module.startswith(f"{prefix}.") for module in spelt)
