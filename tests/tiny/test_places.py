"""The forty places: their size, their sameness per seed, and that their edges alone tell them apart."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sdxl_ray.tiny._build.places import PLACES, draw


def _image(name: str, seed: int, edge: int = 64) -> Image.Image:
    return draw(name, np.random.default_rng(seed), edge)


def _ring(name: str, seed: int) -> np.ndarray:
    """The 8 x 8 colour grid of what stays visible when an object masks the middle 60 %."""
    image = np.asarray(_image(name, seed), dtype=np.float64) / 255
    seen = np.ones((64, 64, 1))
    seen[13:51, 13:51] = 0
    cells = [values.reshape(8, 8, 8, 8, -1).sum(axis=(1, 3)) for values in (image * seen, seen)]
    grid = cells[0] / np.maximum(cells[1], 1)
    return np.asarray(grid[cells[1][..., 0] > 0].ravel())


def test_forty_places_have_two_to_four_unique_phrases() -> None:
    phrases = [phrase for place in PLACES.values() for phrase in place.phrases]
    assert len(PLACES) == 40
    assert all(name == place.name and 2 <= len(place.phrases) <= 4 for name, place in PLACES.items())
    assert len(set(phrases)) == len(phrases)
    assert PLACES["studio"].phrases[0] == "in a studio"


@pytest.mark.parametrize("name", PLACES)
def test_a_draw_follows_its_seed(name: str) -> None:
    first = _image(name, 1, 96)
    assert (first.mode, first.size) == ("RGB", (96, 96))
    assert first.tobytes() == _image(name, 1, 96).tobytes()
    assert first.tobytes() != _image(name, 2, 96).tobytes()


def test_the_edges_alone_tell_the_places_apart() -> None:
    centroids = np.stack([np.mean([_ring(name, seed) for seed in range(12)], axis=0) for name in PLACES])
    guesses = [
        (name, list(PLACES)[int(np.argmin(((centroids - _ring(name, seed)) ** 2).sum(axis=1)))])
        for name in PLACES
        for seed in range(100, 106)
    ]
    wrong = [guess for guess in guesses if guess[0] != guess[1]]
    assert len(wrong) <= 0.1 * len(guesses), wrong
