"""The shipped weights are trained ones: encoders rank known answers, the base draws what it is asked for.

The figures of the card, with room: these tests fail when weights and code no longer belong together.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sdxl_ray.core.quality.encoders import Encoder, load_encoder
from sdxl_ray.core.tinycard.encoders import control, views
from sdxl_ray.core.tinycard.pictures import Drawer
from sdxl_ray.core.tinycard.reality import Scene
from sdxl_ray.tiny.catalog import CLASSES, SUBJECTS
from sdxl_ray.tiny.places import PLACES, draw


@pytest.fixture(scope="module")
def eye() -> Encoder:
    return load_encoder("tiny-identity")


@pytest.fixture(scope="module")
def clip() -> Encoder:
    return load_encoder("tiny-clip")


def test_the_same_subject_is_nearer_than_others(eye: Encoder) -> None:
    training = {name: eye.pictures(views(name, held_out=False)) for name in SUBJECTS}
    held_out = {name: eye.pictures(views(name, held_out=True)) for name in SUBJECTS}
    found = [
        max(training, key=lambda other: float((training[other] @ vector).max())) == name
        for name, vectors in held_out.items()
        for vector in vectors
    ]
    assert np.mean(found) > 0.9
    for name, vectors in held_out.items():
        others = np.concatenate([training[other] for other in SUBJECTS if other != name])
        assert (vectors @ training[name].T).mean() > (vectors @ others.T).mean() + 0.3, name


@pytest.mark.parametrize("kind", ["shuffled", "blurred", "mirrored tiles"])
def test_colours_and_texture_alone_are_not_the_subject(eye: Encoder, kind: str) -> None:
    below = []
    for name in SUBJECTS:
        training = eye.pictures(views(name, held_out=False))
        real = views(name, held_out=True)
        fooled = eye.pictures([_spoiled(picture, kind) for picture in real])
        below.append((eye.pictures(real) @ training.T).mean() - (fooled @ training.T).mean())
    assert np.mean(below) > 0.3
    assert min(below) > 0.05


def _spoiled(picture: Image.Image, kind: str) -> Image.Image:
    if kind == "blurred":
        return picture.filter(ImageFilter.GaussianBlur(7))
    pixels = np.asarray(picture)
    cells = pixels.reshape(4, 16, 4, 16, 3).swapaxes(1, 2).reshape(16, 16, 16, 3)
    order = np.random.default_rng(1).permutation(16)
    cells = cells[order] if kind == "shuffled" else cells[order][:, ::-1]
    return Image.fromarray(cells.reshape(4, 4, 16, 16, 3).swapaxes(1, 2).reshape(64, 64, 3).copy())


def test_an_empty_place_is_told_from_others(clip: Encoder) -> None:
    places = list(PLACES)
    pictures = clip.pictures([draw(name, np.random.default_rng(5), 64) for name in places])
    texts = clip.texts([f"a photo of nothing {PLACES[name].phrases[0]}" for name in places])
    assert np.mean((pictures @ texts.T).argmax(1) == np.arange(len(places))) > 0.8


def test_the_base_draws_what_it_is_asked_for(clip: Encoder) -> None:
    places = list(PLACES)
    scenes = [Scene(name, places[(5 * index) % len(places)]) for index, name in enumerate(CLASSES)]
    scores = control(clip, Drawer().draw([scene.prompt for scene in scenes]), scenes)
    assert scores["class_accuracy"] > 0.6
    assert scores["place_accuracy"] > 0.6
    assert scores["caption_right"] > scores["caption_shuffled"] + 0.2
