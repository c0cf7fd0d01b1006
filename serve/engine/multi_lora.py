"""Several LoRAs in one batch: each layer has one pair of matrices, whatever mix of adapters its rows use.

The active adapters lie side by side along the rank, down [R, in] and up [out, R], R the sum of their ranks. A mask
[B, R] holds each row's strength of each adapter: y = W x + ((x down^T) * mask) up^T. Two small products a layer, no
loop over adapters, and a row of the base adds exactly nothing, since its mask is 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve.engine.adapter import AdapterStrength, LoadedAdapter

#: Where a layer lies and which columns belong to which adapter: layers with equal layouts share their mask.
RowLayout = tuple[str, tuple[tuple[int, int], ...], int]
Masks = Mapping[RowLayout, Tensor]
#: The strengths of one row of a batch; none: a row of the base.
StrengthRow = Sequence[AdapterStrength]

_ALIGNED = 16  # ranks that tensor cores like


class MixedLayer(nn.Module):
    """A linear or convolution layer of the base with the active adapters beside it."""

    def __init__(self, base: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        # Plain attributes: torch.compile takes parameters and buffers for constant in shape, and these are not.
        self.down: Tensor | None = None
        self.up: Tensor | None = None
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, ..., in] -> [B, ..., out], or [B, C, H, W] of a convolution."""
        y: Tensor = self.base(x)
        if self.mask is None or self.down is None or self.up is None:
            return y
        if isinstance(self.base, nn.Conv2d):
            of = self.base
            h = F.conv2d(x, self.down, None, of.stride, of.padding, of.dilation)
            return y + F.conv2d((h * self.mask[:, :, None, None]).to(h.dtype), self.up)
        h = F.linear(x, self.down)
        h = (h * self.mask.view(-1, *[1] * (x.dim() - 2), self.mask.shape[1])).to(h.dtype)
        # One pass over y instead of two.
        return torch.addmm(y.flatten(0, -2), h.flatten(0, -2), self.up.t()).view_as(y)


class LoraLayers:
    """The layers of one model that adapters change. Used by one thread: the one that runs the model."""

    def __init__(self, model: nn.Module, part: str, *, uniform: bool = False) -> None:
        """uniform: all layers have the same R, whether an adapter changes them or not, so that one program fits all."""
        self._model, self._part, self._uniform = model, part, uniform
        self._layers: dict[str, MixedLayer] = {}
        self._layouts: dict[str, RowLayout] = {}
        self._used: Masks | None = None
        self.active: tuple[LoadedAdapter, ...] = ()

    def install(self, names: Collection[str]) -> None:
        """Put mixed layers where `names` (full names) say; those that are there stay."""
        for name in sorted(set(names) - self._layers.keys()):
            parent, _, last = name.rpartition(".")
            layer = MixedLayer(self._model.get_submodule(name))  # type: ignore[arg-type]
            setattr(self._model.get_submodule(parent), last, layer)
            self._layers[name] = layer

    @property
    def bases(self) -> dict[str, nn.Linear | nn.Conv2d]:
        """The base's layers that have been put into mixed ones, by full name."""
        return {name: layer.base for name, layer in self._layers.items()}

    @property
    def stale(self) -> bool:
        """Whether an adapter is active that has been evicted: `activate` gives its memory back."""
        return any(one.evicted.is_set() for one in self.active)

    def suits(self, needed: Collection[LoadedAdapter]) -> bool:
        """Whether `needed` are active, and not many others: then `activate` does nothing, and masks stay valid."""
        wanted, now = self._changing(needed).keys(), {one.hash for one in self.active}
        # One more adapter than needed costs little, laying them side by side anew costs a pass over every layer.
        return wanted <= now and len(now) <= 2 * max(len(wanted), 1) and not self.stale

    def activate(self, needed: Collection[LoadedAdapter]) -> None:
        """Make sure that `needed` are active. Where it raises (out of memory, above all) no adapter is."""
        if self.suits(needed):
            return
        self._clear()  # first: what is half laid out would draw with another mix, and nobody would see it
        try:
            self.active = tuple(self._changing(needed).values())
            self.install({name for one in self.active for name in one.parts[self._part]})
            width = max((sum(p.rank for p in self._pairs(name).values()) for name in self._layers), default=0)
            for name, layer in self._layers.items():
                self._lay(name, layer, -(-width // _ALIGNED) * _ALIGNED if self._uniform else 0)
        except BaseException:
            self._clear()
            raise

    def masks(self, rows: Sequence[StrengthRow], device: torch.device) -> Masks | None:
        """The masks of a batch under the active adapters, fp32 (a strength of 0.7 is 0.699 in bf16).

        None when no row uses one.
        """
        slots = {one.hash: slot for slot, one in enumerate(self.active)}
        used = [(i, slots[s.adapter.hash], s) for i, row in enumerate(rows) for s in row if s.adapter.hash in slots]
        if not used:
            return None
        strengths: dict[str, Tensor] = {}
        masks: dict[RowLayout, Tensor] = {}
        for layout in set(self._layouts.values()):
            group, columns, width = layout
            if group not in strengths:
                table = torch.zeros(len(rows), len(slots) + 1)  # the last column is that of the padding
                for row, slot, strength in used:
                    table[row, slot] += strength.of(group)
                strengths[group] = table
            of_column = [slot for slot, rank in columns for _ in range(rank)]
            of_column += [len(slots)] * (width - len(of_column))
            masks[layout] = strengths[group][:, of_column].to(device)
        return masks

    def use(self, masks: Masks | None) -> None:
        """What the next call of the model multiplies with."""
        if masks is self._used:
            return
        self._used = {}  # nobody's masks, should this end half way
        for name, layer in self._layers.items():
            mask = None if masks is None else masks.get(self._layouts[name])
            # torch.compile remembers which layers had the very same tensor, and layouts come and go.
            layer.mask = mask.detach() if mask is not None and self._uniform else mask
        self._used = masks

    def _changing(self, adapters: Collection[LoadedAdapter]) -> dict[str, LoadedAdapter]:
        """Those that change layers of this model, by hash."""
        return {one.hash: one for one in adapters if one.parts.get(self._part)}

    def _clear(self) -> None:
        """The base alone."""
        self.active, self._used = (), None
        self._layouts.clear()
        for layer in self._layers.values():
            layer.down = layer.up = layer.mask = None

    def _pairs(self, name: str) -> dict[int, Any]:
        found = {slot: one.parts[self._part].get(name) for slot, one in enumerate(self.active)}
        return {slot: pair for slot, pair in found.items() if pair is not None}

    def _lay(self, name: str, layer: MixedLayer, width: int) -> None:
        pairs = self._pairs(name)
        self._layouts[name] = (_group(name), tuple((slot, pair.rank) for slot, pair in pairs.items()), width)
        missing = width - sum(pair.rank for pair in pairs.values())
        downs, ups = [pair.down for pair in pairs.values()], [pair.up for pair in pairs.values()]
        if missing > 0:
            weight = layer.base.weight
            downs.append(weight.new_zeros(missing, *weight.shape[1:]))
            ups.append(weight.new_zeros(weight.shape[0], missing, *[1] * (weight.dim() - 2)))
        if downs:
            layer.down = downs[0] if len(downs) == 1 else torch.cat(downs)
            layer.up = ups[0] if len(ups) == 1 else torch.cat(ups, dim=1)


def _group(name: str) -> str:
    return {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}.get(name.partition(".")[0], "")
