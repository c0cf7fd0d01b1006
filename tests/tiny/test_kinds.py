"""Further drawings: all that two sets draw and no class could be taken for, and classes as further sets draw them."""

from __future__ import annotations

from typing import Any, cast

from PIL import Image, ImageDraw

from sdxl_ray.tiny._build.further_designs import further_designs
from sdxl_ray.tiny._build.sprites import EDGE

#: name -> the sets that have it
ICONS = {
    "lion": ("flat", "noto", "fx", "twemoji"),
    "cactus": ("flat", "noto", "emojione"),  # a class, which the base has seen as two of them draw it
    "four-leaf-clover": ("flat", "noto1"),
    "dog-face": ("flat", "noto", "noto1"),  # a class is drawn so
    "guide-dog": ("flat", "noto"),  # named like a class
    "three-oclock": ("flat", "noto"),  # a dozen look alike
    "hamsa": ("noto",),  # alone
    "thread": ("flat", "noto"),  # hardly any ink
}


class NamedSprites:
    """Answers as `Sprites` does, for the names above; every drawing is a square, and the thread's is a line."""

    def __init__(self) -> None:
        self.admitted: dict[str, dict[str, str]] = {}

    def categories(self, set_name: str) -> dict[str, list[str]]:
        some = {"Animals & Nature": list(ICONS), "Flags": ["flag"]}
        return {
            name: some.get(name, []) for name in (*some, "Food & Drink", "Travel & Places", "Objects", "Activities")
        }

    def icon(self, set_name: str, name: str) -> str:
        return name.replace("-", "") if set_name in ICONS.get(name, ()) else ""

    def admit(self, drawings: dict[str, dict[str, str]]) -> None:
        self.admitted |= drawings

    def __getitem__(self, key: tuple[str, str]) -> Image.Image:
        name, set_name = key
        assert self.admitted[name][set_name]
        image = Image.new("RGBA", (EDGE, EDGE))
        ImageDraw.Draw(image).rectangle((0, 0, EDGE, 5 if name == "thread" else EDGE), fill="red")
        return image


def test_what_differs_from_every_class_is_a_further_kind_and_classes_are_drawn_once_more() -> None:
    found = [(design.class_name, design.set_name) for design in further_designs(cast(Any, NamedSprites()))]
    assert found == [
        ("cactus", "emojione"),
        ("lion", "flat"), ("lion", "noto"), ("lion", "fx"), ("lion", "twemoji"),
        ("four-leaf-clover", "flat"), ("four-leaf-clover", "noto1"),
    ]  # fmt: skip
