"""Bootstrap intervals over what a score could have had otherwise: other prompts, other seeds, other photos.

A score is the mean of an array of terms whose axes are such units. Terms that share a prompt or a photo are not
independent, so whole units are drawn again, each kind by itself (the pigeonhole bootstrap, arXiv 0712.1111), and never
single terms. It errs on the wide side. Draws are counted: the same for every model, so a difference between two models
is of the same prompts, seeds and photos.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdxl_ray.metrics.counted_random import counted

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 1000
_SHARE = 0.95


@dataclass(frozen=True)
class Terms:
    """The terms of one score: `values` has an axis for every name in `units`, NaN where there is no such term.

    A unit named twice stands for pairs of its members; a member with itself is NaN. n: images behind the score.
    """

    values: FloatArray
    units: tuple[str, ...]
    n: int

    @property
    def mean(self) -> float:
        """The score."""
        return float(np.nanmean(self.values))

    def __sub__(self, other: Terms) -> Terms:
        """The paired difference; both must be of the same prompts, seeds and photos."""
        if self.units != other.units or self.values.shape != other.values.shape:
            raise ValueError(f"{self.units} {self.values.shape} and {other.units} {other.values.shape} are not paired")
        return Terms(self.values - other.values, self.units, self.n)


@dataclass(frozen=True)
class Interval:
    """A score and where 95 % of its resamples lie; low and high are None where there is nothing to draw again."""

    value: float
    low: float | None
    high: float | None
    n: int


def interval(terms: Terms, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap of the mean. Depends on its arguments only."""
    means = resampled(terms, seed, resamples)
    low, high = ends(means) if means is not None else (None, None)
    return Interval(terms.mean, low, high, terms.n)


def resampled(terms: Terms, seed: int = 0, resamples: int = RESAMPLES) -> FloatArray | None:
    """The mean of each resample, fp64 [resamples]; NaN for a draw that hit one member only and has no pair in it.

    None where there is nothing to draw again.
    """
    sizes = dict(zip(terms.units, terms.values.shape, strict=True))
    if not any(size > terms.units.count(unit) for unit, size in sizes.items()):
        return None
    drawn = {unit: counts(unit, size, seed, resamples) for unit, size in sizes.items()}
    known = np.isfinite(terms.values)
    weights = [drawn[unit] for unit in terms.units]
    axes = string.ascii_lowercase[: len(weights)]
    spec = ",".join([*(f"z{axis}" for axis in axes), axes]) + "->z"
    top: Any = np.einsum(spec, *weights, np.where(known, terms.values, 0.0), optimize=True)
    bottom: Any = np.einsum(spec, *weights, known.astype(np.float64), optimize=True)
    means: FloatArray = np.divide(top, bottom, out=np.full(resamples, np.nan), where=bottom > 0)
    return means


def ends(means: FloatArray) -> tuple[float, float]:
    """Where 95 % of resampled means lie."""
    low, high = np.nanquantile(means, [(1 - _SHARE) / 2, (1 + _SHARE) / 2])
    return float(low), float(high)


def counts(unit: str, size: int, seed: int, resamples: int) -> FloatArray:
    """How often each member was drawn: fp64 [resamples, size], rows sum to `size`."""
    rng = counted(seed, f"resample {unit}", size)
    return rng.multinomial(size, np.full(size, 1 / size), resamples).astype(np.float64)
