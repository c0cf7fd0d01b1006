"""Forty named places, the backgrounds of the embedded base's images.

Each place is a row of brush strokes, from the back to the front. Since an object covers the middle, what tells a place
from the others also lies along its edges. Two draws of a place differ in light, tints, horizon, sizes and side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageOps

from sdxl_ray.tiny._build.places_brushes import SCALE, Canvas, BrushLayer, band, boards, curtains, disc, dots, frame, hills, houses, leaves, puffs, shape, spikes, stripes, tiles, trees, wash


@dataclass(frozen=True)
class NamedPlace:
    """A background and the phrases that complete "a frog ..." with it, the canonical one first."""

    name: str
    phrases: tuple[str, ...]
    indoor: bool


PLACES: dict[str, NamedPlace] = {}
_LAYERS: dict[str, tuple[BrushLayer, ...]] = {}


def _add(indoor: bool, name: str, phrases: str, *layers: BrushLayer) -> None:
    PLACES[name] = NamedPlace(name, tuple(phrases.split(", ")), indoor)
    _LAYERS[name] = layers


_outdoors, _indoors = partial(_add, False), partial(_add, True)


def draw(name: str, rng: np.random.Generator, edge: int) -> Image.Image:
    """One image of the place, RGB, `edge` pixels wide and high."""
    canvas = Canvas(rng, edge)
    for layer in _LAYERS[name]:
        layer(canvas)
    image = canvas.image.reduce(SCALE)
    light = rng.uniform(0.94, 1.06) * rng.uniform(0.98, 1.02, size=3)
    table = np.clip(np.arange(256) * light[:, None], 0, 255).astype(np.uint8)
    image = image.point(table.ravel().tolist())
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


# fmt: off
_indoors(
    "studio", "in a studio, in a white studio, on a plain white background", wash("#f4f4f4", "#e4e4e6", "#fafafa"),
)

# By the water, and in it.
_outdoors(
    "beach", "on a beach, at the beach, on the sand by the sea",
    wash("#7fd0f5", "#c9eefb"), disc(0.86, 0.14, 0.1, "#ffe45c"),
    wash("#1f93c9", "#3fc3cf", top=0.42), hills(0.64, 0.06, "#f7fbf5", 2), hills(0.69, 0.06, "#f2d99a", 2),
    dots(5, 2, 0.025, "#d9b66c", top=0.78, flat=0.6),
)
_outdoors(
    "underwater", "under water, under the sea, in the ocean",
    wash("#3cc4e8", "#1673c0", "#0b3f8f"), stripes(4, "#4fc9e6", top=0, bottom=0.4, slant=0.2, part=0.35),
    hills(0.86, 0.07, "#c8b07a", 1.5),
    leaves(((0.06, 0.98, 270), (0.92, 0.98, 270), (0.28, 1, 275)), 0.4, "#1fa36a", "#157a58"),
    dots(4, 3, 0.028, "#bdf0fb", top=0.05, bottom=0.8),
)
_outdoors(
    "pool", "in a swimming pool, in a pool, in the water of a pool",
    wash("#35cfe6", "#22b8dc"), dots(4, 6, 0.07, "#86ebf5", flat=0.35),
    band(0, 0.1, "#f3ead8", fixed=True), band(0.1, 0.15, "#2a6fd0", fixed=True),
    tiles(9, 17, "#f0433a", "#ffffff", top=0.32, bottom=0.38), tiles(9, 17, "#f0433a", "#ffffff", top=0.74, bottom=0.8),
)
_outdoors(
    "sunset", "at sunset, in front of a sunset, in the light of the sunset",
    wash("#5b2a86", "#d8467f", "#ff8a3c", "#ffd257", "#ffd257"), disc(0.5, 0.6, 0.3, "#fff0a0"),
    wash("#a83a72", "#3a1c62", top=0.64), dots(3, 4, 0.13, "#ff9a52", top=0.68, flat=0.16),
)

# The sky and beyond.
_outdoors(
    "clouds", "in the clouds, in the blue sky, among the clouds",
    wash("#2f8fe8", "#7fc4fa"), puffs(2, 4, 0.135, "#ffffff"),
)
_outdoors(
    "night sky", "under the night sky, at night, under the stars",
    wash("#0d1440", "#22307a", "#3d4fa6"), disc(0.84, 0.15, 0.11, "#fff3bf"), dots(5, 5, 0.018, "#ffe98a", bottom=0.8),
    hills(0.86, 0.12, "#101a33", 1.5),
)
_outdoors(
    "space", "in space, in outer space, among the planets",
    wash("#0a0612", "#1b0b2e", "#0a0612"), dots(3, 3, 0.13, "#35124f", "#2a0f45", flat=0.6),
    dots(5, 5, 0.016, "#ffffff"), disc(0.1, 0.14, 0.15, "#e0703a", "#f0955a"),
    disc(0.9, 0.85, 0.2, "#2f9e9a", "#52c4b6"), disc(0.9, 0.1, 0.06, "#c9c2d8"),
)
_outdoors(
    "rain", "in the rain, on a rainy day, standing in the rain",
    wash("#5f6f80", "#8796a4", "#6d7b88"), puffs(3, 1, 0.18, "#465260", bottom=0.14),
    stripes(8, "#b9cbd9", top=0.22, slant=0.2, bottom=0.86, part=0.24), dots(3, 2, 0.14, "#a9bccb", top=0.84, flat=0.3),
)

# Wild land.
_outdoors(
    "forest", "in a forest, in the forest, among the trees",
    wash("#6fa04c", "#3d7335"), stripes(5.5, "#5a3a22", "#7a5230", "#4a2f1d", part=0.42),
    wash("#2c5a27", "#1e431d", top=0.8), puffs(3, 2, 0.19, "#1f5a2a", bottom=0.24),
)
_outdoors(
    "snow", "in the snow, on a snowy day, on white snow", wash("#a9c4e6", "#d5e3f4"), hills(0.5, 0.08, "#c4d5ea"),
    trees((0.06, 0.27, 0.75, 0.95), 0.66, 0.52, "#5d4636", "#2f6b5e", "#3b7a6a", pine=True),
    hills(0.68, 0.06, "#fbfdff", 1), dots(5, 5, 0.024, "#ffffff"),
)
_outdoors(
    "desert", "in a desert, in the desert, among hills of sand",
    wash("#f6b04a", "#ffe0a0"), disc(0.15, 0.15, 0.12, "#fff6cf"), hills(0.45, 0.16, "#e59a4a", 1),
    hills(0.62, 0.18, "#d4803a", 1.2), hills(0.82, 0.14, "#b9652c", 1),
)
_outdoors(
    "meadow", "in a meadow, in a flower meadow, among the flowers",
    wash("#bfe8f7", "#e6f7ef"), hills(0.3, 0.08, "#9bd65a"),
    dots(5, 5, 0.045, "#ff6fae", "#ffd83c", "#ffffff", "#b46be0", top=0.4, loose=0.2),
)
_outdoors(
    "mountain", "on a mountain, in the mountains, in front of a mountain",
    wash("#f3c9c4", "#fbe9dc"), spikes((0.5,), 0.8, 0.2, 0.9, "#8f8aa6", "#ffffff"),
    spikes((0.08, 0.92), 0.85, 0.06, 0.75, "#6b6788", "#ffffff"), hills(0.8, 0.08, "#54705c"),
)
_outdoors(
    "volcano", "on a volcano, in front of a volcano, above the lava",
    wash("#2a0d10", "#7a1b14", "#c9381a"), spikes((0.5,), 0.85, 0.05, 1.1, "#2b1d1f", "#ff7a1a"),
    wash("#3a1512", "#1d0c0c", top=0.74), dots(3, 3, 0.14, "#ff6a10", "#ffae22", top=0.76, flat=0.3),
    dots(5, 2, 0.03, "#ff9a2a", bottom=0.5),
)
_outdoors(
    "cave", "in a cave, in a dark cave, inside a stone cave",
    wash("#4f5468", "#858a9c", "#434759"), spikes((0.12, 0.37, 0.63, 0.88), 0, 0.34, 0.3, "#262936"),
    spikes((0.0, 0.25, 0.75, 1.0), 1, 0.68, 0.32, "#303443"), frame(0.07, "#262936"),
)
_outdoors(
    "jungle", "in a jungle, in the jungle, among green jungle leaves",
    wash("#c5e86c", "#7fc65a"), spikes((0.2, 0.8), 1, 0.6, 0.5, "#4fa84a"), leaves(
        ((0, 0, 45), (0.5, -0.05, 90), (1, 0, 135), (0, 1, 315), (1, 1, 225), (0, 0.5, 0), (1, 0.5, 180)), 0.42,
        "#168f4a", "#0d6e3c", "#2bb35a",
    ),
)

# Farms, gardens and parks.
_outdoors(
    "wheat field", "in a wheat field, in a field of wheat, on golden wheat",
    wash("#4f9fe0", "#9fd0f2"), stripes(8, "#e5b53a", "#f3cf5c", "#cf9a28", top=0.3),
    dots(8, 2, 0.05, "#f7d97a", "#e0ab35", top=0.27, bottom=0.42, flat=1.5),
)
_outdoors(
    "farm", "on a farm, at the farm, in front of a barn", wash("#9fdcf0", "#d6f1f2"),
    shape((0, 1), (0, 0.16), (0.16, 0.05), (0.36, 0.22), (0.36, 0.7), (0, 0.7), color="#c6302b"),
    shape((0, 0.16), (0.16, 0.04), (0.4, 0.24), (0.4, 0.31), (0.16, 0.12), (0, 0.24), color="#f7efe4"),
    band(0.42, 0.64, "#f7efe4", 0.08, 0.26), disc(0.9, 0.5, 0.2, "#4d8f3a"), boards(7, "#6f4a2c", "#79b346", top=0.62),
)
_outdoors(
    "garden", "in a garden, in front of a white fence, in the garden by a fence",
    wash("#8fd2f2", "#bfe6f5"), puffs(3, 1, 0.17, "#2f8a4c", top=0.2, bottom=0.38), band(0.32, 0.75, "#2f8a4c"),
    stripes(7, "#ffffff", top=0.28, bottom=0.82, part=0.55), band(0.42, 0.48, "#f4f4f4"), band(0.64, 0.7, "#f4f4f4"),
    wash("#5fb84a", "#4a9f3c", top=0.8), dots(5, 1, 0.045, "#e83a5f", "#ff8fb0", top=0.86),
)
_outdoors(
    "park", "in an autumn park, in a park in autumn, among autumn leaves",
    wash("#f7e7c4", "#f3d7a0"), trees((0.02, 0.22, 0.8, 0.98), 0.7, 0.66, "#5d3a25", "#d9541e", "#e88a1f", "#c23a1c"),
    hills(0.68, 0.05, "#b5702e"), dots(5, 4, 0.045, "#e8641e", "#f2a52a", "#8f3f1a", top=0.7, flat=0.6),
)
_outdoors(
    "grass", "on the grass, on green grass, in the grass", stripes(4, "#58b93f", "#82d35a", slant=0.35),
    leaves([(x, y, 270) for y in (0.2, 0.6, 1) for x in (0.1, 0.5, 0.9)], 0.14, "#2f8a2a"),
)

# Towns.
_outdoors(
    "city", "on a city street, in the city, on a street in the city", wash("#b8c6dc", "#e0e2ea"),
    houses(((0, 0.17), (0.18, 0.33), (0.67, 0.82), (0.83, 1)), 0.08, 0.76, "#ffe08a", "#4b5a78", "#75648c"),
    houses(((0.37, 0.63),), 0.36, 0.76, "#cfd8e8", "#8b95ad"), band(0.74, 0.83, "#c9c5c0"),
    wash("#55565e", "#44454c", top=0.82),
)
_outdoors(
    "road", "on a road, on the road, in the middle of the road",
    wash("#cdeaf5", "#eef6ee"), wash("#a9bd5a", "#8ea63f", top=0.34),
    shape((0.38, 0.34), (0.62, 0.34), (1.05, 1), (-0.05, 1), color="#4a4c52"),
    shape((0.47, 0.4), (0.53, 0.4), (0.545, 0.55), (0.455, 0.55), color="#ffffff"),
    shape((0.45, 0.66), (0.55, 0.66), (0.58, 1), (0.42, 1), color="#ffffff"),
    trees((0.05, 0.2, 0.82, 0.96), 0.46, 0.3, "#6b4a2c", "#5c8a34"),
)
_outdoors(
    "market", "at a market, in the market, at the market",
    wash("#f3dfb8", "#e5c48c"), band(0.7, 1, "#9a6231"), tiles(3.2, 6.5, "#b97a40", gap=0.04, top=0.74),
    dots(8, 1, 0.06, "#e8452f", "#ff9a24", "#7fc23a", "#ffd23c", top=0.62, bottom=0.76, loose=0.1),
    stripes(5.5, "#d92f3a", "#ffffff", bottom=0.2),
    dots(6, 1, 0.085, "#d92f3a", "#ffffff", top=0.15, bottom=0.28, loose=0),
)
_outdoors(
    "castle", "in front of a castle wall, by a stone wall, at the wall of a castle",
    wash("#5fb0f0", "#5fb0f0"), stripes(3.4, "#8b8e97", top=0.1, bottom=0.3, part=0.55), band(0.24, 1.1, "#74777f"),
    tiles(3.4, 6, "#9da0a8", "#8b8e97", "#abaeb4", gap=0.035, top=0.24, shift=0.5, mixed=True),
    *(shape((x, 0.36), (x + 0.07, 0.36), (x + 0.07, 0.72), (x, 0.82), color="#7a3fb0") for x in (0.03, 0.83)),
    *(shape((x, 0.36), (x + 0.07, 0.36), (x + 0.07, 0.82), (x, 0.72), color="#6b35a0") for x in (0.1, 0.9)),
)
_outdoors(
    "brick wall", "in front of a brick wall, by a brick wall, by a wall of red brick",
    wash("#e3cfc0", "#d9c3b3"), tiles(3.2, 7, "#b5462f", "#a33b28", "#c45a3e", gap=0.035, shift=0.5, mixed=True),
)

# Rooms.
_indoors(
    "kitchen", "in a kitchen, in the kitchen, on a kitchen counter",
    wash("#ffffff", "#f4f4ee"), tiles(5, 5, "#f2d27a", gap=0.04),
    band(0, 0.13, "#3f8f86", fixed=True), band(0.66, 0.76, "#d8d4cc"), wash("#3f8f86", "#35807a", top=0.75),
    stripes(3, "#2b6a64", top=0.76, part=0.09), dots(3, 1, 0.03, "#f2e6c0", top=0.78, bottom=0.9, loose=0.05),
)
_indoors(
    "table", "on a wooden table, on a table, on top of a table",
    wash("#b9d3c4", "#a9c7b7"), stripes(5, "#cfe4d6", part=0.5), boards(5, "#dca263", "#bd7f40", top=0.5),
    band(0.46, 0.51, "#8a5526"), shape((0, 0.46), (0.09, 0.46), (0, 0.75), color="#86a896"),
    shape((1, 0.46), (0.91, 0.46), (1, 0.75), color="#86a896"),
)
_indoors(
    "bedroom", "in a bedroom, on a bed, in the bedroom on a bed",
    wash("#b9a5dc", "#a792d0"), band(0.06, 0.24, "#f6d98a", 0.06, 0.28, True),
    band(0.06, 0.24, "#f6d98a", 0.72, 0.94, True), band(0.36, 1, "#6d4630", 0.03, 0.97),
    band(0.49, 0.7, "#ffffff", 0.09, 0.42), band(0.49, 0.7, "#ffffff", 0.58, 0.91),
    wash("#5a6fd0", "#4557b5", top=0.66), stripes(3, "#7f92ea", top=0.66, part=0.4),
)
_indoors(
    "library", "in a library, in front of a bookshelf, by the books in a library", wash("#4a2d1a", "#4a2d1a"),
    tiles(8.5, 3.4, "#b23a34", "#2f6a8f", "#d8a83c", "#3f7f4a", "#6b3f78", "#e0d2b0", gap=0.03, mixed=True),
    *(band(y, y + 0.065, "#8a5a30", fixed=True) for y in (0.0, 0.31, 0.62, 0.935)),
)
_indoors(
    "classroom", "in a classroom, in front of a green chalkboard, in the classroom",
    wash("#f0dfb8", "#e8d3a4"), band(0.08, 0.78, "#8a5a30", 0.03, 0.97), band(0.13, 0.73, "#2a6650", 0.08, 0.92),
    band(0.2, 0.24, "#dfeee4", 0.14, 0.4), band(0.3, 0.34, "#dfeee4", 0.14, 0.3),
    band(0.2, 0.24, "#dfeee4", 0.66, 0.86), band(0.88, 1.1, "#c48a4a"),
)
_indoors(
    "bathroom", "in a bathroom, in front of blue tiles, on blue bathroom tiles",
    wash("#eef6fb", "#eef6fb"), tiles(6, 6, "#5b9fd8", "#6fb0e2", "#4a8fcc", gap=0.035, mixed=True),
)
_indoors(
    "stage", "on a stage, on the stage",
    wash("#2a1420", "#4a2230"), shape((0.4, 0), (0.6, 0), (0.9, 1), (0.1, 1), color="#7a4a3a"),
    boards(4, "#a8683a", "#c07f48", top=0.78), curtains(0.26, "#b3122a", "#7d0c20", 0.17),
)
_indoors(
    "window", "at a window, in front of a window, by the window",
    wash("#9fd8f7", "#d5f0fb"), hills(0.6, 0.06, "#8fcf7a"), frame(0.08, "#ffffff"),
    band(0.46, 0.54, "#ffffff", fixed=True), band(0, 1, "#ffffff", 0.46, 0.54, True),
    curtains(0.26, "#f5a93a", "#dd8a22"), band(0.86, 1.1, "#f2e2cc"),
)

# Patterns.
_indoors(
    "pink dots", "in a pink room, in front of a pink dotted wall, by a pink wall with white dots",
    wash("#f58fb4", "#f07fa8"), dots(5, 7, 0.06, "#ffffff", loose=0.03),
)
_indoors(
    "blue stripes", "in front of a blue striped wall, in a blue room, by a wall with blue stripes",
    stripes(8, "#3f6fc4", "#e8eefa"), band(0.86, 1.1, "#c9935a"),
)
_indoors(
    "checkered floor", "on a checkered floor, on black and white tiles, on a black and white floor",
    tiles(5, 5, "#1c1c20", "#f4f4f2"),
)
_indoors(
    "wooden floor", "on a wooden floor, on wood, on the wooden floor",
    wash("#a8742f", "#a8742f"), tiles(0.9, 6, "#dba65a", "#cc9548", "#e8bd78", gap=0.03, shift=0.43, mixed=True),
)
_indoors(
    "carpet", "on a red carpet, on a carpet, on a red rug",
    wash("#a8162a", "#941224"), dots(4, 5, 0.05, "#e8b83c", loose=0.03),
    frame(0.13, "#6d0c1c"), frame(0.06, "#e8b83c", 0.04),
)
