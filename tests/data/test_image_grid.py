"""The contact sheet shows every image where its labels say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sdxl_ray.data.image_grid import grid


def _plain(color: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_small_images_are_enlarged_without_blur_and_stand_in_order() -> None:
    sheet = np.asarray(grid([[_plain("red"), _plain("lime")], [_plain("blue")]], ["before", "after"], ["one", "two"]))
    counts = {
        name: int((sheet == color).all(axis=2).sum())
        for name, color in {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}.items()
    }
    assert counts == {"red": 192 * 192, "lime": 192 * 192, "blue": 192 * 192}
    centres = [
        np.argwhere((sheet == color).all(axis=2)).mean(axis=0) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    ]
    assert centres[0][0] == centres[1][0] < centres[2][0]
    assert centres[0][1] == centres[2][1] < centres[1][1]
    assert tuple(sheet[-1, -1]) == (255, 255, 255)


def test_long_labels_wrap_and_never_cover_an_image() -> None:
    long = "a photo of sks dog wearing a santa hat on the beach at night " + "x" * 80
    sheet = np.asarray(grid([[_plain("red"), _plain("red")]], [long], [long, ""]))
    assert int((sheet == (255, 0, 0)).all(axis=2).sum()) == 2 * 192 * 192
    ink = np.argwhere(sheet.max(axis=2) < 100)
    assert len(ink) > 500
    red = np.argwhere((sheet == (255, 0, 0)).all(axis=2))
    above = ink[ink[:, 0] < red[:, 0].min()]
    assert above[:, 1].max() < red[:, 1].min() + 192  # a label is as wide as its own column


def test_large_images_are_shrunk_and_keep_their_proportions() -> None:
    sheet = np.asarray(grid([[_plain("red", (2048, 1024))]], [""], [""]))
    red = np.argwhere((sheet == (255, 0, 0)).all(axis=2))
    assert tuple(red.max(axis=0) - red.min(axis=0) + 1) == (256, 512)
    assert max(sheet.shape) < 600


def test_labels_must_count_up() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        grid([], [], [])
    with pytest.raises(ValueError, match="1 x 1 images, but 2 x 1 labels"):
        grid([[_plain("red")]], ["a", "b"], ["c"])
