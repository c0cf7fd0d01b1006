"""Strength by block: `down=1,mid=0.5,up=0.2`, a single block as `down_blocks.1`, or its name in a single file.

strengths = BlockStrengths.parse("up=0.2,up_blocks.0.attentions.1=1")
strengths.of(Layer("unet", "up_blocks.0.resnets.0.conv1"), names)     # 0.2
"""

from __future__ import annotations

import math
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

    @classmethod
    def parse(cls, text: str, option: str = "--blocks") -> BlockStrengths:
        """Read `NAME=STRENGTH,...`. Raises UserError: no number, or a name twice."""
        strengths: dict[str, float] = {}
        for item in filter(None, (item.strip() for item in text.split(","))):
            name, _, value = item.partition("=")
            try:
                strength = float(value)
            except ValueError:
                strength = math.nan
            if not math.isfinite(strength):
                raise UserError(f"{option} {item!r}: write NAME=STRENGTH with a finite number, for example mid=0.5")
            if name.strip() in strengths:
                raise UserError(f"{option} has {name.strip()!r} twice: keep one")
            strengths[name.strip()] = strength
        return cls(strengths)

    def of(self, layer: Layer, names: LayerNames) -> float:
        """The strength of a layer."""
        fitting = [name for name in self.strengths if _fits(name, layer, names)]
        return self.strengths[max(fitting, key=_length)] if fitting else 1.0

    def require_known(self, layers: Iterable[Layer], names: LayerNames, option: str = "--blocks") -> None:
        """Raise UserError for a name that begins the name of none of `layers`."""
        layers = list(layers)
        for name in self.strengths:
            if not any(_fits(name, layer, names) for layer in layers):
                blocks = {".".join(layer.module.split(".")[:2]) for layer in layers if layer.part == "unet"}
                known = {*GROUPS, *PARTS[1:], *blocks}
                raise UserError(f"{option} {name!r} is no block with a layer of these adapters: {nearest(name, known)}")


def _length(name: str) -> int:
    return len(GROUPS.get(name, name))


def _fits(name: str, layer: Layer, names: LayerNames) -> bool:
    if layer.part != "unet":
        return name == layer.part
    prefix = GROUPS.get(name, name)
    spelt = (layer.module, names.sgm.to_sgm(layer.module) or "")
    return any(module == prefix or module.startswith(f"{prefix}.") for module in spelt)
