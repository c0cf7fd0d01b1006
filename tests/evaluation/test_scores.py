"""Scores against arithmetic by hand, known answers, and intervals that cover what they should."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from sdxl_ray.evaluation import scores
from sdxl_ray.metrics.bootstrap import Terms, interval

RNG = np.random.default_rng(7)


def unit(*shape: int) -> np.ndarray:
    rows = RNG.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def test_fidelity_alignment_and_leak_are_mean_cosines() -> None:
    images, photos, texts = unit(3, 2, 5), unit(4, 5), unit(3, 5)
    found = scores.fidelity(images, photos)
    assert found is not None
    assert found.n == 6
    by_hand = [cosine(images[p, s], photo) for p in range(3) for s in range(2) for photo in photos]
    assert found.mean == pytest.approx(mean(by_hand), abs=1e-6)
    aligned = scores.alignment(images, texts)
    assert aligned.mean == pytest.approx(mean([cosine(images[p, s], texts[p]) for p in range(3) for s in range(2)]))
    leaked = scores.leak(images[0], photos)
    assert leaked is not None
    assert leaked.mean == pytest.approx(mean([cosine(a, b) for a in images[0] for b in photos]), abs=1e-6)


def test_references_leave_out_a_photo_against_itself() -> None:
    photos, others = unit(4, 5), unit(3, 5)
    found = scores.among(photos)
    assert found is not None
    pairs = [cosine(a, b) for a, b in itertools.permutations(photos, 2)]
    assert found.mean == pytest.approx(mean(pairs), abs=1e-6)
    named = scores.named(photos, others)
    assert named is not None
    assert (named.n, named.units) == (4, ("photo",))
    assert named.mean == pytest.approx(mean([cosine(a, b) for a in photos for b in others]), abs=1e-6)
    assert scores.named(photos[:1], others) is None
    between = scores.between(others, photos)
    assert between is not None
    assert between.mean == pytest.approx(mean([cosine(a, b) for a in others for b in photos]), abs=1e-6)


def test_class_distance_by_hand_and_beside_torchmetrics() -> None:
    x, y = unit(5, 4), unit(5, 4)
    found = scores.class_distance(x, y)
    assert found is not None

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (cosine(a, b) + 1) ** 3

    pairs = list(itertools.permutations(range(5), 2))
    by_hand = mean([k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs])
    assert found.mean == pytest.approx(by_hand, abs=1e-6)

    class Given(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = KernelInceptionDistance(Given(), subsets=1, subset_size=5, gamma=1.0)
    library.update(torch.from_numpy(x).double(), real=True)
    library.update(torch.from_numpy(y).double(), real=False)
    # The library's is for independent sets: it counts the cross terms of twins, which ours leaves out.
    cross = [[k(a, b) for b in y] for a in x]
    twins = 2 * (mean([cross[i][j] for i, j in pairs]) - mean([v for row in cross for v in row]))
    assert found.mean == pytest.approx(float(library.compute()[0]) - twins, abs=1e-5)
    itself = scores.class_distance(x, x)
    assert itself is not None
    assert itself.mean == pytest.approx(0, abs=1e-12)


def test_diversity_compares_the_same_places_of_images_of_one_prompt() -> None:
    patches = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    found = scores.diversity(patches)
    assert found is not None
    distances = []
    for p in range(2):
        for a, b in itertools.permutations(range(3), 2):
            places = [
                cosine(one, two) / (np.linalg.norm(one) * np.linalg.norm(two))
                for one, two in zip(patches[p, a], patches[p, b], strict=True)
            ]
            distances.append(1 - mean(places))
    assert found.mean == pytest.approx(mean(distances), abs=1e-6)
    repeated = scores.diversity(np.repeat(patches[:, :1], 3, axis=1))
    assert repeated is not None
    assert repeated.mean == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_scored_is_absent() -> None:
    assert scores.fidelity(unit(2, 2, 4), unit(1, 4)) is None
    assert scores.fidelity(unit(2, 2, 4), np.empty((0, 1), np.float32)) is None
    assert scores.leak(unit(2, 4), unit(1, 4)) is None
    assert scores.among(unit(1, 4)) is None
    assert scores.between(unit(1, 4), unit(3, 4)) is None
    assert scores.class_distance(unit(1, 4), unit(1, 4)) is None
    assert scores.diversity(RNG.normal(size=(3, 1, 2, 4))) is None
    with pytest.raises(ValueError, match="no pairs"):
        scores.class_distance(unit(2, 4), unit(3, 4))


def test_an_interval_by_hand() -> None:
    """Two units of two members: every resample is one of nine known means."""
    values = np.array([[0.0, 1.0], [2.0, 5.0]])
    found = interval(Terms(values, ("prompt", "seed"), 4), resamples=4000)
    weights = [(2, 0), (1, 1), (0, 2)]
    means = {(a, b): float(np.array(a) @ values @ np.array(b)) / 4 for a in weights for b in weights}
    assert found.value == pytest.approx(2.0)
    assert (found.low, found.high) == (means[(2, 0), (2, 0)], means[(0, 2), (0, 2)])


def test_an_interval_depends_on_its_arguments_only_and_single_members_give_none() -> None:
    terms = Terms(RNG.normal(size=(5, 4, 3)), ("prompt", "seed", "photo"), 20)
    assert interval(terms) == interval(terms)
    assert interval(terms) != interval(terms, seed=1)
    alone = interval(Terms(np.array([[3.0]]), ("prompt", "seed"), 1))
    assert (alone.value, alone.low, alone.high) == (3.0, None, None)
    pair = interval(Terms(np.array([[math.nan, 0.5], [0.5, math.nan]]), ("photo", "photo"), 2))
    assert (pair.value, pair.low, pair.high) == (0.5, None, None)


def test_pairs_never_hold_a_member_twice() -> None:
    """A photo drawn twice is no pair with itself, which would pull every interval up."""
    square = np.full((4, 4), 0.25)
    np.fill_diagonal(square, math.nan)
    found = interval(Terms(square, ("photo", "photo"), 4))
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))


def test_whole_units_are_resampled() -> None:
    """One odd prompt of six widens the interval however many seeds it was drawn with."""
    values = np.zeros((6, 50))
    values[0] = 1
    found = interval(Terms(values, ("prompt", "seed"), 300))
    assert found.high is not None
    assert found.high >= 2 / 6
    narrow = interval(Terms(values.ravel(), ("picture",), 300))
    assert narrow.high is not None
    assert narrow.high < 0.25


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        values = rng.normal(size=(12, 1)) + rng.normal(size=(1, 12)) + rng.normal(size=(12, 12))
        found = interval(Terms(values, ("prompt", "seed"), 144), seed=trial, resamples=300)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert covered >= 88


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    shared = RNG.normal(size=(8, 4))
    one = Terms(shared, ("prompt", "seed"), 32)
    two = Terms(shared + 0.1 + 0.01 * RNG.normal(size=(8, 4)), ("prompt", "seed"), 32)
    apart = interval(two - one)
    assert apart.value == pytest.approx(two.mean - one.mean)
    assert apart.low is not None
    assert apart.low > 0.08
    first, second = interval(one), interval(two)
    assert first.high is not None
    assert second.low is not None
    assert second.low < first.high
    with pytest.raises(ValueError, match="not paired"):
        one - Terms(shared[:4], ("prompt", "seed"), 16)
