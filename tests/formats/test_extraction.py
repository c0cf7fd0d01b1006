"""One layer's extraction: the nearest pair of every rank, and ranks by energy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.extraction import RankRule, decompose, rank_rules

SHAPES = [(24, 40), (40, 24), (32, 32), (16, 6, 3, 3), (96, 6, 3, 3), (20, 30, 1, 1)]


def _weights(shape: tuple[int, ...], size: float = 1e-3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(sum(shape))
    base = torch.randn(shape, generator=draw)
    return base + size * torch.randn(shape, generator=draw), base


@pytest.mark.parametrize("shape", SHAPES)
def test_every_rank_is_as_near_as_the_singular_values_allow(shape: tuple[int, ...]) -> None:
    tuned, base = _weights(shape)
    parts = decompose(tuned, base)
    difference = (tuned.double() - base.double()).flatten(1)
    singular = torch.linalg.svdvals(difference)
    torch.testing.assert_close(parts.singular, singular, rtol=1e-9, atol=1e-15)
    for rank in (1, 3, len(singular) - 1, len(singular)):
        pair = parts.pair(rank, torch.float32)
        assert pair.shape == shape and pair.rank == rank and pair.alpha == rank
        change = pair.scale * (pair.up.double().flatten(1) @ pair.down.double().flatten(1))
        error = float((difference - change).norm() / difference.norm())
        predicted = float(singular[rank:].square().sum().sqrt() / difference.norm())
        assert error == pytest.approx(predicted, abs=1e-6)
        assert parts.residual(pair) == pytest.approx(float((difference - change).square().sum()), rel=1e-6, abs=1e-18)


def test_a_low_rank_difference_is_held_exactly_and_the_rest_is_no_noise() -> None:
    draw = torch.Generator().manual_seed(0)
    base = torch.zeros(48, 64)
    tuned = torch.randn(48, 3, generator=draw) @ torch.randn(3, 64, generator=draw)
    parts = decompose(tuned, base)
    assert float(parts.singular[3] / parts.singular[0]) < 1e-6  # a root of rounding errors would be larger
    assert parts.residual(parts.pair(3, torch.float32)) < 1e-12 * float(tuned.square().sum())


def test_factors_are_balanced_so_that_fp16_holds_small_changes() -> None:
    tuned, base = _weights((64, 64), size=1e-6)
    parts = decompose(tuned, base)
    pair = parts.pair(64, torch.float16)
    torch.testing.assert_close(pair.up.double().norm(dim=0), pair.down.double().norm(dim=1), rtol=2e-3, atol=0)
    assert parts.residual(pair) < 1e-5 * float(parts.difference.square().sum())


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.95, 0.999])
def test_energy_keeps_the_least_rank(energy: float) -> None:
    singular = decompose(*_weights((40, 64))).singular
    squares = singular.square()
    rank = RankRule(energy=energy).of(singular)
    assert squares[:rank].sum() >= energy * squares.sum() > squares[: rank - 1].sum()


def test_energy_one_leaves_out_exact_zeros_alone() -> None:
    assert RankRule(energy=1.0).of(torch.tensor([2.0, 1e-9, 0.0, 0.0], dtype=torch.float64)) == 2
    assert RankRule(energy=1e-9).of(torch.tensor([2.0, 1.0], dtype=torch.float64)) == 1


def test_rules_are_read_in_order_and_once() -> None:
    rules = rank_rules("8, 1,full,8", "0.95")
    assert [rule.name for rule in rules] == ["rank-8", "rank-1", "rank-full", "energy-0.95"]
    assert [rule.of(torch.ones(4)) for rule in rules] == [4, 1, 4, 4]


@pytest.mark.parametrize(
    ("ranks", "energy", "line"),
    [
        ("0", "", "'0' is no rank"),
        ("-4", "", "'-4' is no rank"),
        ("4,", "", "'' is no rank"),
        ("four", "", "'four' is no rank"),
        ("²", "", "'²' is no rank"),
        ("4.5", "", "'4.5' is no rank"),
        ("", "", "--ranks is empty"),
        ("4", "0", "'0' is no share"),
        ("4", "1.01", "'1.01' is no share"),
        ("4", "nan", "'nan' is no share"),
        ("4", "much", "'much' is no share"),
    ],
)
def test_no_rank_and_no_share_are_refused(ranks: str, energy: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        rank_rules(ranks, energy)
    assert line in str(caught.value)
