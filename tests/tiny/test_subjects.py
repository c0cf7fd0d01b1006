"""The shipped subjects: complete, of known classes, in places of their own."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from sdxl_ray.errors import UserError
from sdxl_ray.tiny._build import subjects
from sdxl_ray.tiny._build.catalog import CLASSES, SUBJECTS


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_every_subject_is_complete(name: str) -> None:
    folder = subjects.folder(name)
    files = [folder / f"{number}.png" for number in range(5)]
    held_out = [folder / "held_out" / f"{number}.png" for number in range(5)]
    assert sorted(folder.rglob("*.png")) == sorted(files + held_out)
    images = []
    for file in files + held_out:
        with Image.open(file) as shipped:
            assert shipped.mode == "RGB"
            assert shipped.size == (64, 64)
            images.append(np.asarray(shipped, np.int16))
        assert file.stat().st_size < 10_000
    assert min(np.abs(a - b).mean() for a, b in itertools.combinations(images, 2)) > 15
    assert json.loads((folder / "card.json").read_text()) == subjects.card(name)


def test_the_cards_say_what_a_recipe_needs() -> None:
    card = subjects.card("robot")
    assert card["class_name"] == "robot"
    assert card["subject"] == "sks robot"
    assert card["description"] == "An orange robot with blue stripes"
    assert card["licence"] == "Apache-2.0"
    assert card["origin"].startswith("@iconify-json/noto-v1 ")
    assert {subjects.card(name)["class_name"] for name in SUBJECTS} <= set(CLASSES)


def test_an_unknown_subject_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="no subject 'robbot' is shipped: did you mean 'robot'"):
        subjects.folder("robbot")
