"""Low-rank pairs of the difference between two weights: the truncated singular value decomposition, exact.

    parts = decompose(tuned, base)                  # once a layer, whatever ranks are wanted
    pair = parts.pair(16, torch.float16)            # no pair of rank 16 comes nearer (Eckart and Young, 1936)

A difference D is [out, in], of convolutions [out, in kh kw] (LoCon's form). It is computed and decomposed in fp64 by
the eigenvectors of its smaller Gram matrix: D = U S V^T with U of D D^T and S V^T = U^T D, or from D^T D where that is
smaller. Singular values are the lengths of the rows of U^T D, so small ones are not the roots of rounding errors.
Both factors get the square root of S, which keeps their numbers within fp16; alpha is the rank, so the strength is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import LowRank


@dataclass(frozen=True)
class Decomposition:
    """D = left right, both with the root of S; difference: D, fp64 [out, n]; singular: fp64 [k], descending.

    left: fp64 [out, k]; right: fp64 [k, n]; shape: of the weight, [out, in] or [out, in, kh, kw].
    """

    difference: Tensor
    left: Tensor
    right: Tensor
    singular: Tensor
    shape: tuple[int, ...]

    def pair(self, rank: int, dtype: torch.dtype) -> LowRank:
        """The nearest pair of this rank, or of the matrix's own where that is smaller, in `dtype`."""
        rank = min(rank, len(self.singular))
        down, up = self.right[:rank].to(dtype), self.left[:, :rank].to(dtype).contiguous()
        if len(self.shape) == 4:
            down, up = down.reshape(rank, *self.shape[1:]), up[..., None, None]
        return LowRank(down.contiguous(), up, float(rank))

    def residual(self, pair: LowRank) -> float:
        """||D - up down||^2 of a pair as it is stored, rounding to its dtype included."""
        kept = pair.up.double().flatten(1) @ pair.down.double().flatten(1)
        return float((self.difference - pair.scale * kept).square().sum())


def decompose(tuned: Tensor, base: Tensor) -> Decomposition:
    """The singular value decomposition of tuned - base, weights of a Linear or a convolution."""
    difference = (tuned.double() - base.double()).flatten(1)
    wide = difference.shape[0] <= difference.shape[1]
    flat = difference if wide else difference.T
    vectors = torch.linalg.eigh(flat @ flat.T)[1].flip(1)  # columns by descending eigenvalue
    scaled = vectors.T @ flat
    singular, order = scaled.norm(dim=1).sort(descending=True)  # rounding may swap neighbours of nearly equal length
    root = singular.sqrt()
    inverse = torch.where(root > 0, 1 / root, torch.zeros_like(root))
    left, right = vectors[:, order] * root, scaled[order] * inverse[:, None]
    if not wide:
        left, right = right.T, left.T
    return Decomposition(difference, left, right, singular, tuple(tuned.shape))


@dataclass(frozen=True)
class RankRule:
    """How many singular values a layer keeps: a rank for all, all of them (neither is set), or a share of the energy.

    energy: the least rank whose singular values have at least this share of the sum of all their squares.
    """

    rank: int | None = None
    energy: float | None = None

    @property
    def name(self) -> str:
        """`rank-16`, `rank-full` or `energy-0.95`."""
        if self.energy is not None:
            return f"energy-{self.energy:.12g}"
        return f"rank-{self.rank or 'full'}"

    def of(self, singular: Tensor) -> int:
        """The rank for a layer with these singular values, descending."""
        if self.energy is None:
            return min(self.rank or len(singular), len(singular))
        # Sums from the small end, so that energy 1 leaves out exact zeros only.
        tails = singular.square().flip(0).cumsum(0).flip(0)
        too_much = tails > (1 - self.energy) * tails[0]
        return max(1, int(too_much.sum()))


def rank_rules(ranks: str, energies: str = "") -> list[RankRule]:
    """Rules of `--ranks 4,8,full` and `--energy 0.9,0.95`, each once. Raises UserError for what is no rank or share."""
    rules = [_rank(word) for word in _words(ranks)] + [_energy(word) for word in _words(energies)]
    if not rules:
        raise UserError("--ranks is empty: give ranks, as --ranks 4,8,16")
    return list(dict.fromkeys(rules))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")] if text.strip() else []


def _rank(word: str) -> RankRule:
    if word == "full":
        return RankRule()
    if not word.isascii() or not word.isdigit() or int(word) == 0:
        raise UserError(f"--ranks: {word!r} is no rank: give whole numbers from 1, or full, as --ranks 4,8,16")
    return RankRule(rank=int(word))


def _energy(word: str) -> RankRule:
    try:
        share = float(word)
    except ValueError:
        share = float("nan")
    if not 0 < share <= 1:
        raise UserError(f"--energy: {word!r} is no share of the squared singular values: above 0, at most 1, as 0.95")
    return RankRule(energy=share)
