"""The metrics tell good from bad: cases with a known answer, on the encoders that ship, with intervals apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from sdxl_ray.config.schema import Base
from sdxl_ray.evaluation.encoders import Encoder, load_encoder
from sdxl_ray.evaluation.scores import among, between, class_distance, diversity
from sdxl_ray.metrics.bootstrap import Interval, Terms, interval
from sdxl_ray.models.pipeline import generate, load_pipeline
from sdxl_ray.tiny import shipped
from sdxl_ray.tiny._build.captions import with_article
from sdxl_ray.tiny._build.catalog import SUBJECTS
from sdxl_ray.tiny._build.places import PLACES, draw


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


@pytest.mark.parametrize("which", ["identity", "clip"])
def test_subject_fidelity(
    which: str, photos: dict[str, list[Image.Image]], noise: list[Image.Image], request: pytest.FixtureRequest
) -> None:
    """The same subject above other classes above noise."""
    encoder: Encoder = request.getfixturevalue(which)
    rows = {name: encoder.images(some) for name, some in photos.items()}
    nothing = encoder.images(noise)
    same, foreign, none = [], [], []
    for name, mine in rows.items():
        pairs = mine @ mine.T
        same.append(float(pairs[~np.eye(len(mine), dtype=bool)].mean()))
        kind = SUBJECTS[name].class_name
        others = np.concatenate([theirs for other, theirs in rows.items() if SUBJECTS[other].class_name != kind])
        foreign.append(float((others @ mine.T).mean()))
        none.append(float((nothing @ mine.T).mean()))
    _require_order(_over_subjects(none), _over_subjects(foreign), _over_subjects(same))


@pytest.fixture(scope="module")
def drawn(photos: dict[str, list[Image.Image]]) -> dict[str, list[Image.Image]]:
    """What the base draws of each subject's class: others of its kind, in the same few strokes."""
    pipe = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
    return {
        name: generate(
            pipe,
            [f"a photo of {with_article(SUBJECTS[name].class_name)}"] * 3,
            seeds=[1, 2, 3],
            num_inference_steps=8,
            guidance_scale=4.0,
            batch_size=3,
        )
        for name in photos
    }


@pytest.mark.slow
@pytest.mark.parametrize("which", ["identity", "clip"])
def test_the_subject_above_another_of_its_class_above_another_class(
    which: str,
    photos: dict[str, list[Image.Image]],
    drawn: dict[str, list[Image.Image]],
    noise: list[Image.Image],
    request: pytest.FixtureRequest,
) -> None:
    encoder: Encoder = request.getfixturevalue(which)
    real = {name: encoder.images(some) for name, some in photos.items()}
    class_rows = {name: encoder.images(some) for name, some in drawn.items()}
    nothing = encoder.images(noise)
    found: dict[str, list[float]] = {"same": [], "kind": [], "foreign": [], "noise": []}
    for name, mine in real.items():
        same, kind = among(mine), between(class_rows[name], mine)
        others = [rows for other, rows in class_rows.items() if SUBJECTS[other].class_name != SUBJECTS[name].class_name]
        foreign, none = between(np.concatenate(others), mine), between(nothing, mine)
        for key, terms in zip(found, (same, kind, foreign, none), strict=True):
            assert terms is not None
            found[key].append(terms.mean)
    over = {key: _over_subjects(means) for key, means in found.items()}
    _require_order(over["noise"], over["foreign"], over["kind"], over["same"])


@pytest.mark.slow
def test_the_class_drifts_least_to_itself_and_most_to_noise(
    clip: Encoder, drawn: dict[str, list[Image.Image]], noise: list[Image.Image]
) -> None:
    rows, names = {name: clip.images(some) for name, some in drawn.items()}, list(drawn)
    nothing = clip.images(noise[:3])
    kin, foreign, none = [], [], []
    for place, name in enumerate(names):
        mine, other = rows[name], rows[names[(place + 1) % len(names)]]
        for kept, theirs in ((kin, np.roll(mine, 1, axis=0)), (foreign, other), (none, nothing)):
            terms = class_distance(theirs, mine)
            assert terms is not None
            kept.append(terms.mean)
    _require_order(_over_subjects(kin), _over_subjects(foreign), _over_subjects(none))


def test_prompt_fidelity(clip: Encoder, noise: list[Image.Image]) -> None:
    """Matched captions above shuffled ones above captions of noise."""
    places = [[draw(name, np.random.default_rng([7, seed]), 64) for seed in range(3)] for name in PLACES]
    texts = clip.texts([f"a photo of nothing {place.phrases[0]}" for place in PLACES.values()])
    cosines = np.stack([clip.images(some).mean(axis=0) @ texts.T for some in places])
    matched = _over_subjects([float(value) for value in np.diag(cosines)])
    shuffled = _over_subjects([float(np.delete(row, i).mean()) for i, row in enumerate(cosines)])
    nothing = _over_subjects([float(value) for value in (clip.images(noise) @ texts.T).mean(axis=0)])
    _require_order(nothing, shuffled, matched)


def test_diversity_of_sets(identity: Encoder, photos: dict[str, list[Image.Image]]) -> None:
    """One image repeated below one subject in many places below many subjects."""
    several = list(photos.values())
    collapsed = [[some[0]] * 5 for some in several]
    mixed = [[several[(i + k) % len(several)][k] for k in range(5)] for i in range(len(several))]

    def score(sets: list[list[Image.Image]]) -> Interval:
        terms = diversity(np.stack([identity.patches(images) for images in sets]))
        assert terms is not None
        return interval(Terms(np.nanmean(terms.values, axis=(1, 2)), ("prompt",), terms.n))

    _require_order(score(collapsed), score(several), score(mixed))
