"""How alike two images should be to an identity encoder, as cosines, and the loss that asks for it.

The same design in any scene is close; another design of its class is between; another class is at a right angle; what
has colours and texture without a shape (decoys, images of a generator that cannot draw yet) is beyond that. A plain
contrast of designs knows no levels: siblings on the same places are its hardest negatives and end below strangers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

_TEMPERATURE = 0.1
#: kind of pair -> (lowest cosine, highest cosine, weight)
LEVELS: dict[str, tuple[float, float, float]] = {
    "same": (0.85, 1.0, 4.0),
    "sibling": (0.38, 0.48, 6.0),
    "stranger": (-1.0, 0.0, 3.0),
    "decoy": (-1.0, -0.1, 6.0),  # of the design itself
    "false": (-1.0, -0.1, 3.0),  # decoys of others
    "generated": (-1.0, 0.0, 2.0),
}


@dataclass(frozen=True)
class Pairs:
    """Masks [B, B] of the kinds of pairs in a batch, each pair once or twice."""

    masks: dict[str, torch.Tensor]

    @staticmethod
    def of(owner: torch.Tensor, imitates: torch.Tensor, classes: torch.Tensor, nothing: int) -> Pairs:
        """`owner` says who, `imitates` whose decoy (-1: none), `classes` what (< 0: unknown; `nothing`: no thing)."""
        real = (classes >= 0) & (classes != nothing)
        both = real[:, None] & real[None]
        same_class = both & (classes[:, None] == classes[None])
        itself = torch.eye(len(owner), dtype=torch.bool, device=owner.device)
        same = both & (owner[:, None] == owner[None])
        own_decoy = (imitates[:, None] == owner[None]) & real[None]
        return Pairs(
            {
                "same": same & ~itself,
                "sibling": same_class & ~same,
                "stranger": both & ~same_class,
                "decoy": own_decoy,
                "false": (classes == nothing)[:, None] & real[None] & ~own_decoy,
                "generated": (classes < 0)[:, None] & real[None],
            }
        )

    def levels(self, alike: torch.Tensor) -> dict[str, torch.Tensor]:
        """By kind of pair, its weighted mean distance to where its cosines should be."""
        losses = {}
        for kind, (low, high, weight) in LEVELS.items():
            if self.masks[kind].any():
                found = alike[self.masks[kind]]
                losses[kind] = weight * (functional.relu(low - found) + functional.relu(found - high)).mean()
        return losses

    def contrast(self, alike: torch.Tensor) -> torch.Tensor:
        """Supervised contrast of designs (arXiv 2004.11362) in which siblings are neither matches nor negatives."""
        left_out = self.masks["sibling"] | torch.eye(len(alike), dtype=torch.bool, device=alike.device)
        log_share = (alike / _TEMPERATURE).masked_fill(left_out, -1e9).log_softmax(-1)
        same = self.masks["same"]
        has = same.any(1)
        return -((log_share * same).sum(1)[has] / same.sum(1)[has]).mean()

    @torch.no_grad()
    def means(self, alike: torch.Tensor) -> dict[str, float]:
        """Mean cosine by kind of pair, of those that the batch has."""
        return {kind: float(alike[mask].mean()) for kind, mask in self.masks.items() if mask.any()}


def cosines(vectors: torch.Tensor) -> torch.Tensor:
    """[B, B] cosines of rows [B, D]."""
    unit = functional.normalize(vectors, dim=-1)
    return unit @ unit.T
