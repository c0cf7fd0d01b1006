"""Scenes of 64 x 64 pixels: one drawing, sometimes two, on one of the places, with its caption and its facts.

A scene is a function of its number (and of the drawings and places), so that any part of the data can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from sdxl_ray.tiny._build.captions import caption
from sdxl_ray.tiny._build.catalog import CLASSES, COLORS, PATTERNS, Design, known_designs
from sdxl_ray.tiny._build.designs import Designs
from sdxl_ray.tiny._build.places import PLACES, draw

EDGE = 64
GRID = 8  # cells a side of the map that says which class covers what
NOTHING = len(CLASSES)  # index of "no class"
_MARGIN = 32  # pixels by which a kept background is larger than a scene
_VARIANTS = 120  # backgrounds kept of each place

#: Shares of scenes.
_TWO, _EMPTY, _UNSAID_PLACE = 0.08, 0.03, 0.12
_RECOLORED, _PATTERNED = 0.20, 0.15
_CROPPED, _BLURRY, _LARGE_ORIGINAL = 0.10, 0.08, 0.25


@dataclass(frozen=True)
class Pose:
    """How a drawing stands in an image: centre and size as shares of the edge, tilt in degrees, mirrored or not."""

    x: float
    y: float
    scale: float
    tilt: float
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """An image and what it shows; `time_ids` are SDXL's six: original height and width, crop top and left, target."""

    image: Image.Image
    designs: tuple[Design, ...]
    place: str
    time_ids: tuple[int, int, int, int, int, int] = (EDGE, EDGE, 0, 0, EDGE, EDGE)
    #: [GRID, GRID] index in CLASSES of what covers the cell, NOTHING where the background shows.
    grid: np.ndarray[Any, np.dtype[np.uint8]] = field(default_factory=lambda: np.full((GRID, GRID), NOTHING, np.uint8))


def held_out_pairs() -> frozenset[tuple[str, str]]:
    """(class, place) pairs that no training scene shows: 4 places of each class, a tenth of all pairs."""
    return frozenset(
        (name, place)
        for row, name in enumerate(CLASSES)
        for column, place in enumerate(PLACES)
        if (row + 3 * column) % 10 == 0
    )


class Scenery:
    """Draws scenes. Backgrounds are taken from a bank that is drawn once (about 25 s).

    `further`: drawings of kinds beside the classes, which only those who ask for them by name get.
    """

    def __init__(self, designs: Designs, seed: int, variants: int = _VARIANTS, further: Sequence[Design] = ()) -> None:
        self._designs = designs
        self._seed = seed
        self._pairs = held_out_pairs()
        self._known: dict[str, list[Design]] = {}
        for design in [*known_designs(), *further]:
            self._known.setdefault(design.class_name, []).append(design)
        self._bank = {
            name: [
                draw(name, np.random.default_rng([seed, 1, index, number]), EDGE + _MARGIN)
                for number in range(variants)
            ]
            for index, name in enumerate(PLACES)
        }

    def scene(self, number: int) -> Scene:
        """Training scene `number`: never a held-out pair, never a subject's drawing."""
        rng = np.random.default_rng([self._seed, 2, number])
        count = 0 if rng.random() < _EMPTY else 2 if rng.random() < _TWO else 1
        designs = tuple(self.random_design(rng) for _ in range(count))
        allowed = [place for place in PLACES if not any((d.class_name, place) in self._pairs for d in designs)]
        return self.compose(designs, str(rng.choice(allowed)), rng, varied=True)

    def caption(self, scene: Scene, rng: np.random.Generator) -> tuple[str, bool]:
        """A caption of the scene, and whether it says the place: a share of them does not."""
        said = not scene.designs or rng.random() >= _UNSAID_PLACE
        return caption(scene.designs, scene.place if said else "", rng), said

    @property
    def kinds(self) -> tuple[str, ...]:
        """What `random_design` can draw: the classes in their order, then the further kinds."""
        return tuple(self._known)

    def draw(self, design: Design) -> Image.Image:
        """The design alone, RGBA."""
        return self._designs.draw(design)

    def random_design(self, rng: np.random.Generator, class_name: str = "", plain: bool = False) -> Design:
        """A drawing that the base may see: as drawn, or (not `plain`) recoloured or patterned."""
        class_name = class_name or str(rng.choice(CLASSES))
        known = self._known[class_name]
        design = known[int(rng.integers(len(known)))]
        chance = rng.random()
        if plain or chance > _RECOLORED + _PATTERNED:
            return design
        color, second = (str(name) for name in rng.choice(list(COLORS), 2, replace=False))
        pattern = str(rng.choice(PATTERNS)) if chance < _PATTERNED else ""
        return Design(class_name, design.set_name, color, pattern, second if pattern else "")

    def compose(self, designs: tuple[Design, ...], place: str, rng: np.random.Generator, varied: bool = False) -> Scene:
        """Designs on a place. `varied` also varies what SDXL's micro-conditioning tells."""
        crop = rng.integers(6, 24) if varied and rng.random() < _CROPPED else 0
        poses = random_poses(len(designs), rng)
        figures = [self._designs.draw(design) for design in designs]
        image, grid = self.place(figures, poses, place, rng, EDGE + int(crop), designs)
        top, left = (int(at) for at in rng.integers(0, crop + 1, 2))
        image = image.crop((left, top, left + EDGE, top + EDGE))
        original = EDGE + int(crop)
        if varied and not crop and rng.random() < _BLURRY:
            original = int(rng.integers(20, 52))
            small = image.resize((original, original), Image.Resampling.BOX)
            image = small.resize((EDGE, EDGE), Image.Resampling.BICUBIC)
        elif varied and not crop and rng.random() < _LARGE_ORIGINAL:
            original = int(rng.integers(EDGE, 4 * EDGE))
        if crop:
            grid = np.full((GRID, GRID), 255, np.uint8)  # unknown: cells no longer line up
        return Scene(image, designs, place, (original, original, top, left, EDGE, EDGE), grid)

    def place(
        self,
        figures: list[Image.Image],
        poses: list[Pose],
        place: str,
        rng: np.random.Generator,
        edge: int = EDGE,
        designs: tuple[Design, ...] = (),
    ) -> tuple[Image.Image, np.ndarray[Any, np.dtype[np.uint8]]]:
        """RGBA figures in their poses before a random view of the place, and the map of what covers what."""
        bank = self._bank[place]
        view = bank[int(rng.integers(len(bank)))]
        left, top = (int(at) for at in rng.integers(0, view.width - edge + 1, 2))
        canvas = view.crop((left, top, left + edge, top + edge))
        if rng.random() < 0.5:
            canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        grid = np.full((GRID, GRID), NOTHING, np.uint8)
        for number, (figure, pose) in enumerate(zip(figures, poses, strict=True)):
            ink, corner = _posed(figure, pose, edge)
            canvas.paste(ink, corner, ink)
            if designs and edge == EDGE:
                cover = Image.new("L", (EDGE, EDGE))
                cover.paste(ink.getchannel("A"), corner)
                cells = np.asarray(cover.reduce(EDGE // GRID))
                grid[cells > 110] = CLASSES.index(designs[number].class_name)
        return canvas, grid


def random_poses(count: int, rng: np.random.Generator) -> list[Pose]:
    """One object near the centre and large, or two side by side."""
    centers = [0.5] if count < 2 else [0.27, 0.73]
    scales = (0.66, 0.90) if count < 2 else (0.42, 0.50)
    spread = 0.05 if count < 2 else 0.03
    return [
        Pose(
            centers[index] + rng.uniform(-spread, spread),
            0.52 + rng.uniform(-spread, spread),
            rng.uniform(*scales),
            float(np.clip(rng.normal(0, 6), -14, 14)),
            bool(rng.random() < 0.5),
        )
        for index in range(count)
    ]


DECOYS = ("blob", "shuffled", "warped", "blurred")


def decoy(figure: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """A figure that keeps colours and texture but not the shape: what an identity score must not reward.

    `kind`: "blob" (its texture in round patches), "shuffled" (its quarters and sixteenths swapped), "warped" (bent by
    waves of a quarter of its size), "blurred" (by an eighth of its size).
    """
    pixels = np.asarray(figure)
    edge = figure.width
    if kind == "blurred":
        # Room around it, or the blur would end at the frame in a square.
        roomy = Image.new("RGBA", (edge, edge))
        roomy.paste(figure.reduce(2), (edge // 4, edge // 4))
        figure = roomy.crop((edge // 8, edge // 8, edge - edge // 8, edge - edge // 8)).resize((edge, edge))
        return figure.convert("RGBa").filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 0.16) * edge)).convert("RGBA")
    if kind == "shuffled":
        cells = int(rng.choice([3, 4]))
        size = edge // cells
        order = rng.permutation(cells * cells)
        shuffled = np.zeros_like(pixels)
        for to, origin in enumerate(order):
            y, x = (size * at for at in divmod(int(origin), cells))
            v, u = (size * at for at in divmod(to, cells))
            shuffled[v : v + size, u : u + size] = pixels[y : y + size, x : x + size]
        return Image.fromarray(shuffled, "RGBA")
    y, x = np.mgrid[:edge, :edge].astype(np.float32) / edge
    if kind == "warped":
        a, b, c, d = rng.uniform(0, 2 * np.pi, 4)
        reach = rng.uniform(0.13, 0.2)
        u = x + reach * np.sin(2 * np.pi * 1.3 * y + a) + 0.5 * reach * np.sin(2 * np.pi * 2.1 * x + b)
        v = y + reach * np.sin(2 * np.pi * 1.4 * x + c) + 0.5 * reach * np.sin(2 * np.pi * 1.9 * y + d)
        rows, columns = ((at * edge).astype(int).clip(0, edge - 1) for at in (v, u))
        return Image.fromarray(pixels[rows, columns], "RGBA")
    assert kind == "blob", kind
    cover = np.zeros((edge, edge), bool)
    for _ in range(int(rng.integers(2, 6))):
        cx, cy, rx, ry = *rng.uniform(0.25, 0.75, 2), *rng.uniform(0.12, 0.32, 2)
        cover |= ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    solid = np.argwhere(pixels[..., 3] > 200)
    # Tile a solid piece of the figure, so that the texture stays and the shape goes.
    side = edge // 4
    corner = solid[int(rng.integers(len(solid)))].clip(0, edge - side)
    tile = pixels[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    painted = np.tile(np.concatenate([tile, tile[::-1]]), (2, 4, 1))[:edge, :edge].copy()
    empty = painted[..., 3] < 200
    painted[empty] = pixels[tuple(solid[int(rng.integers(len(solid)))])]
    painted[..., 3] = np.where(cover, 255, 0)
    return Image.fromarray(painted, "RGBA")


def _posed(figure: Image.Image, pose: Pose, edge: int) -> tuple[Image.Image, tuple[int, int]]:
    size = max(4, round(pose.scale * EDGE))
    ink = figure.convert("RGBa").resize((size, size), Image.Resampling.BOX, reducing_gap=None)
    if pose.mirrored:
        ink = ink.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = ink.convert("RGBA").rotate(pose.tilt, Image.Resampling.BICUBIC, expand=True)
    middle = (edge - EDGE) / 2
    corner = (
        round(middle + pose.x * EDGE - turned.width / 2),
        round(middle + pose.y * EDGE - turned.height / 2),
    )
    return turned, corner
