"""Merging low-rank changes of one layer. Every method computes on what adapters add to a weight, not on their factors.

With d_i = (alpha_i / r_i) up_i down_i and the weight w_i of each adapter that changes the layer:

    linear, concat, svd   sum of w_i d_i                                         what the adapters do together, live
    magnitude_prune       sum of w_i prune(d_i): the largest `density` of its values
    dare_linear           sum of w_i drop(d_i) / density: random values kept, rescaled (arXiv 2311.03099)
    ties                  pruned, then of each value those that agree with the sign of the sum, averaged (2306.01708)
    dare_ties             the same after random dropping

All but the sum are PEFT's functions (`peft.utils.merge_utils`), used as its `..._svd` combinations use them. PEFT's
combinations without `_svd` merge the factors `up` and `down` apart, whose product has terms that no adapter has.

A sum of pairs is a pair: its factors side by side are exact. Everything else is a whole matrix, which a LoRA holds by
its largest singular values; what they leave out is the residual.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sdxl_ray.config.merging import SUMS, Merging
from sdxl_ray.formats.adapter import Layer, LowRank


class Weighted(NamedTuple):
    """An adapter's change of one layer, and the weight that the user gave the adapter."""

    pair: LowRank
    weight: float


class Merged(NamedTuple):
    """A merged layer. change, lost: squared Frobenius norms of the whole change, and of what the pair leaves out."""

    pair: LowRank
    change: float
    lost: float


def merged_pair(layer: Layer, changes: Sequence[Weighted], merging: Merging) -> Merged:
    """The pair (fp32, strength 1) that stands for all changes of the layer; deterministic for equal input."""
    if merging.method not in SUMS:
        ranks = sum(change.pair.rank for change in changes)
        return _by_singular_values(merged_delta(layer, changes, merging), merging.rank or ranks)
    down, up = _side_by_side(changes)
    default = max(change.pair.rank for change in changes) if merging.method == "svd" else down.shape[0]
    rank = merging.rank or default
    largest = min(up.shape[0], down[0].numel())
    if rank >= down.shape[0] and down.shape[0] <= largest:
        return Merged(LowRank(down, up, float(down.shape[0])), _norm(down, up), 0.0)
    return _reduced(down, up, rank)


def merged_delta(layer: Layer, changes: Sequence[Weighted], merging: Merging) -> Tensor:
    """What the changes together add to the layer's weight: fp32, of the weight's shape."""
    if merging.method in SUMS:
        down, up = _side_by_side(changes)
        return _product(down, up)
    deltas = [delta(change.pair) for change in changes]
    weights = torch.tensor([change.weight for change in changes])
    function = _functions()[merging.method]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that density 1 prunes nothing
        torch.manual_seed(_seed(layer, merging.seed or 0))
        merged: Tensor = function(deltas, weights, density=merging.kept)
    return merged


def delta(pair: LowRank) -> Tensor:
    """(alpha / r) up down, fp32, of the weight's shape; a magnitude is not regarded."""
    return _product(pair.down.float(), pair.up.float() * pair.scale)


def dora_weight(weight: Tensor, pair: LowRank, strength: float) -> Tensor:
    """The whole weight under DoRA at a strength, fp32: m (W + s d) / |W + s d|, row by row, as PEFT computes it."""
    assert pair.magnitude is not None
    changed = weight.float() + strength * delta(pair)
    rows = [-1, *[1] * (weight.dim() - 1)]
    norms = torch.linalg.vector_norm(changed.flatten(1), dim=1)
    scaled: Tensor = changed * (pair.magnitude.float() / norms).view(rows)
    return scaled


def _functions() -> dict[str, Callable[..., Tensor]]:
    from peft.utils import merge_utils

    return {
        "ties": partial(merge_utils.ties, majority_sign_method="total"),
        "dare_linear": merge_utils.dare_linear,
        "dare_ties": partial(merge_utils.dare_ties, majority_sign_method="total"),
        "magnitude_prune": merge_utils.magnitude_prune,
    }


def _seed(layer: Layer, seed: int) -> int:
    """Of the layer alone, so that a merge does not depend on the order of layers or on which others there are."""
    digest = hashlib.sha256(f"{seed}/{layer.part}/{layer.module}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _side_by_side(changes: Sequence[Weighted]) -> tuple[Tensor, Tensor]:
    """down [sum of ranks, in, ...] and up [out, sum of ranks, ...] of the weighted sum."""
    downs = [change.pair.down.float() for change in changes]
    ups = [change.pair.up.float() * (change.weight * change.pair.scale) for change in changes]
    return torch.cat(downs), torch.cat(ups, dim=1)


def _product(down: Tensor, up: Tensor) -> Tensor:
    product: Tensor = up.flatten(1) @ down.flatten(1)
    return product.view(up.shape[0], *down.shape[1:])


def _norm(down: Tensor, up: Tensor) -> float:
    """Squared Frobenius norm of up down, from two small matrices."""
    up, down = up.flatten(1).double(), down.flatten(1).double()
    return float(((up.T @ up) * (down @ down.T)).sum())


def _reduced(down: Tensor, up: Tensor, rank: int) -> Merged:
    """The best pair of lower rank, by way of two thin QR decompositions: the product itself is never formed."""
    left, left_r = torch.linalg.qr(up.flatten(1).double())
    right, right_r = torch.linalg.qr(down.flatten(1).double().T)
    u, s, vh = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
    return _truncated(left @ u, s, vh @ right.T, rank, down.shape[1:])


def _by_singular_values(matrix: Tensor, rank: int) -> Merged:
    u, s, vh = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
    return _truncated(u, s, vh, rank, matrix.shape[1:])


def _truncated(u: Tensor, s: Tensor, vh: Tensor, rank: int, inputs: Sequence[int]) -> Merged:
    """Half of each singular value in either factor, so that both fit fp16."""
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    up, down = (u[:, :rank] * root).float(), (root[:, None] * vh[:rank]).float()
    up = up.view(*up.shape, *[1] * (len(inputs) - 1))
    squares = s.double().square()
    total = float(squares.sum())
    lost = float(squares[rank:].sum())
    return Merged(LowRank(down.view(rank, *inputs).contiguous(), up.contiguous(), float(rank)), total, lost)


def residual(merged: Sequence[Merged]) -> float:
    """What pairs leave out of their changes: Frobenius norm, relative, over all layers; 0 is exact."""
    whole = math.fsum(one.change for one in merged)
    return math.sqrt(math.fsum(one.lost for one in merged) / whole) if whole else 0.0
