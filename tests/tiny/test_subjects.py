"""The shipped subjects are exactly what their builder draws."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from sdxl_ray.errors import UserError
from sdxl_ray.tiny import subjects


@pytest.mark.parametrize("name", sorted(subjects.SUBJECTS))
def test_every_shipped_picture_is_redrawn_pixel_for_pixel(name: str) -> None:
    folder = subjects.folder(name)
    files = [folder / f"{number}.png" for number in range(5)] + [folder / "held_out" / f"{n}.png" for n in range(3)]
    assert sorted(folder.rglob("*.png")) == sorted(files)
    for number, file in enumerate(files):
        with Image.open(file) as shipped:
            assert shipped.mode == "RGB"
            assert shipped.size == (64, 64)
            assert shipped.tobytes() == subjects.picture(name, number).tobytes(), file
        assert file.stat().st_size < 5000
    assert json.loads((folder / "card.json").read_text()) == subjects.card(name)


def test_the_cards_say_what_a_recipe_needs() -> None:
    card = subjects.card("robot")
    assert card["class_name"] == "robot"
    assert card["subject"] == "sks robot"
    assert card["licence"] == "Apache-2.0"


def test_no_two_pictures_are_alike() -> None:
    drawn = [np.asarray(subjects.picture(name, n), np.int16) for name in subjects.SUBJECTS for n in range(8)]
    assert min(np.abs(a - b).mean() for a, b in itertools.combinations(drawn, 2)) > 8


def test_an_unknown_subject_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="no subject 'robbot' is shipped: did you mean 'robot'"):
        subjects.folder("robbot")
