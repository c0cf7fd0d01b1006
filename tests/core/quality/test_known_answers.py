"""The metrics tell good from bad: cases with a known answer, on the encoders that ship, with intervals apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from sdxl_ray.core.quality.encoders import Encoder, load_encoder
from sdxl_ray.core.quality.intervals import Interval, Terms, interval
from sdxl_ray.core.quality.scores import diversity
from sdxl_ray.tiny import shipped
from sdxl_ray.tiny.catalog import SUBJECTS
from sdxl_ray.tiny.places import PLACES, draw


@pytest.fixture(scope="module")
def identity() -> Encoder:
    return load_encoder("tiny-identity")


@pytest.fixture(scope="module")
def clip() -> Encoder:
    return load_encoder("tiny-clip")


@pytest.fixture(scope="module")
def photos() -> dict[str, list[Image.Image]]:
    """Held-out photos of every shipped subject."""
    home = shipped.ROOT / "subjects"
    return {
        name: [Image.open(file).convert("RGB") for file in sorted((home / name / "held_out").glob("*.png"))]
        for name in SUBJECTS
    }


@pytest.fixture(scope="module")
def noise() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(10)]


def _over_subjects(means: list[float]) -> Interval:
    return interval(Terms(np.array(means), ("subject",), len(means)))


def _require_order(*rising: Interval) -> None:
    for low, high in pairwise(rising):
        assert low.high is not None
        assert high.low is not None
        assert low.high < high.low, rising


def test_subject_fidelity(identity: Encoder, photos: dict[str, list[Image.Image]], noise: list[Image.Image]) -> None:
    """The same subject above other classes above noise."""
    rows = {name: identity.pictures(some) for name, some in photos.items()}
    nothing = identity.pictures(noise)
    same, foreign, none = [], [], []
    for name, mine in rows.items():
        pairs = mine @ mine.T
        same.append(float(pairs[~np.eye(len(mine), dtype=bool)].mean()))
        others = np.concatenate([theirs for other, theirs in rows.items() if other != name])
        foreign.append(float((others @ mine.T).mean()))
        none.append(float((nothing @ mine.T).mean()))
    _require_order(_over_subjects(foreign), _over_subjects(same))
    _require_order(_over_subjects(none), _over_subjects(same))


def test_prompt_fidelity(clip: Encoder, noise: list[Image.Image]) -> None:
    """Matched captions above shuffled ones; noise not above those."""
    places = [[draw(name, np.random.default_rng([7, seed]), 64) for seed in range(3)] for name in PLACES]
    texts = clip.texts([f"a photo of nothing {place.phrases[0]}" for place in PLACES.values()])
    cosines = np.stack([clip.pictures(some).mean(axis=0) @ texts.T for some in places])
    matched = _over_subjects([float(value) for value in np.diag(cosines)])
    shuffled = _over_subjects([float(np.delete(row, i).mean()) for i, row in enumerate(cosines)])
    nothing = _over_subjects([float(value) for value in (clip.pictures(noise) @ texts.T).mean(axis=0)])
    _require_order(shuffled, matched)
    _require_order(nothing, matched)


def test_diversity_of_sets(identity: Encoder, photos: dict[str, list[Image.Image]]) -> None:
    """One picture repeated below one subject in many places below many subjects."""
    several = list(photos.values())
    collapsed = [[some[0]] * 5 for some in several]
    mixed = [[several[(i + k) % len(several)][k] for k in range(5)] for i in range(len(several))]

    def score(sets: list[list[Image.Image]]) -> Interval:
        terms = diversity(np.stack([identity.patches(pictures) for pictures in sets]))
        assert terms is not None
        return interval(Terms(np.nanmean(terms.values, axis=(1, 2)), ("prompt",), terms.n))

    _require_order(score(collapsed), score(several), score(mixed))
