"""The shipped weights are trained ones: encoders rank known answers, the base draws what it is asked for.

The figures of the card, with room: these tests fail when weights and code no longer belong together.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from sdxl_ray.evaluation.encoders import Encoder, load_encoder
from sdxl_ray.tiny._build.card.encoders import control, identity
from sdxl_ray.tiny._build.card.images import Drawer
from sdxl_ray.tiny._build.card.reality import Reality, RealScene
from sdxl_ray.tiny._build.card.tuning import SUBJECTS_TUNED
from sdxl_ray.tiny._build.catalog import CLASSES
from sdxl_ray.tiny._build.designs import Designs
from sdxl_ray.tiny._build.places import PLACES, draw
from sdxl_ray.tiny._build.scenes import DECOYS, Scenery
from tests.tiny.drawn_sprites import FiledSprites


@pytest.fixture(scope="module")
def eye() -> Encoder:
    return load_encoder("tiny-identity")


@pytest.fixture(scope="module")
def clip() -> Encoder:
    return load_encoder("tiny-clip")


@pytest.fixture(scope="module")
def ranks(eye: Encoder) -> dict[str, Any]:
    """The card's figures of the identity encoder, on the subjects whose classes' drawings are filed with the tests."""
    reality = Reality(Scenery(Designs(cast(Any, FiledSprites())), seed=3, variants=1))
    return identity(eye, reality, SUBJECTS_TUNED)


def test_the_same_subject_is_above_its_class_and_that_above_others(ranks: dict[str, Any]) -> None:
    mean = ranks["mean"]
    assert mean["same"] > mean["same_class"] + 0.4
    assert mean["same_class"] > mean["other_class"] + 0.03
    assert ranks["retrieval"] > 0.95


@pytest.mark.parametrize("kind", DECOYS)
def test_colours_and_texture_alone_are_far_below_the_subject(ranks: dict[str, Any], kind: str) -> None:
    assert ranks["mean"][f"decoy_{kind}"] < ranks["mean"]["same"] - 0.25


@pytest.mark.parametrize("kind", DECOYS)
def test_a_decoy_is_below_others_of_the_class_on_average(ranks: dict[str, Any], kind: str) -> None:
    assert ranks["mean"][f"decoy_{kind}"] < ranks["mean"]["same_class"]


def test_decoys_are_below_others_of_the_class_as_often_as_the_card_says(ranks: dict[str, Any]) -> None:
    """Four in five; the aim is nine in ten."""
    assert ranks["decoys_below_siblings"] > 0.7


def test_an_empty_place_is_told_from_others(clip: Encoder) -> None:
    places = list(PLACES)
    images = clip.images([draw(name, np.random.default_rng(5), 64) for name in places])
    texts = clip.texts([f"a photo of nothing {PLACES[name].phrases[0]}" for name in places])
    assert np.mean((images @ texts.T).argmax(1) == np.arange(len(places))) > 0.8


@pytest.mark.slow
def test_the_base_draws_what_it_is_asked_for(clip: Encoder) -> None:
    places = list(PLACES)
    scenes = [RealScene(name, places[(5 * index) % len(places)]) for index, name in enumerate(CLASSES)]
    scores = control(clip, Drawer().draw([scene.prompt for scene in scenes]), scenes)
    assert scores["class_accuracy"] > 0.6
    assert scores["place_accuracy"] > 0.6
    assert scores["caption_right"] > scores["caption_shuffled"] + 0.2
