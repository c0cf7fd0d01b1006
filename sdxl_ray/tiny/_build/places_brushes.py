"""The brushes that `places` paints backgrounds with.

A brush is made from a few numbers and colours and returns a layer, a function that paints on a canvas. Lengths are
fractions of the frame, y grows downwards. Nothing is thinner than two of 64 pixels: a small VAE loses finer detail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageColor, ImageDraw

Colors = Sequence[str]
BrushLayer = Callable[["Canvas"], None]
#: Painted this much larger and reduced, which smooths the edges.
SCALE = 3


class Canvas:
    """An image in the making; every length and colour it is given wavers a little."""

    def __init__(self, rng: np.random.Generator, edge: int) -> None:
        self.rng = rng
        self.edge = edge * SCALE
        self.image = Image.new("RGB", (self.edge, self.edge))
        self.pen = ImageDraw.Draw(self.image)
        #: One shift of the horizon for all layers, so that they stay together.
        self.lift = self.near(0.0, 0.06)

    def near(self, value: float, spread: float) -> float:
        return float(value + self.rng.uniform(-spread, spread))

    def pick(self, colors: Colors) -> str:
        return colors[int(self.rng.integers(len(colors)))]

    def tint(self, color: str, spread: float = 0.025) -> tuple[int, int, int]:
        red, green, blue = ImageColor.getrgb(color)[:3]
        gain = self.near(1.0, spread)
        return min(255, int(red * gain)), min(255, int(green * gain)), min(255, int(blue * gain))

    def polygon(self, points: Sequence[tuple[float, float]], color: str) -> None:
        self.pen.polygon([(x * self.edge, y * self.edge) for x, y in points], fill=self.tint(color))

    def box(self, left: float, top: float, right: float, bottom: float, color: str) -> None:
        # PIL counts the last pixel as inside.
        corner = (max(left, right) * self.edge - 1, max(top, bottom) * self.edge - 1)
        start = (min(left * self.edge, corner[0]), min(top * self.edge, corner[1]))
        self.pen.rectangle([start, corner], fill=self.tint(color))

    def blob(self, x: float, y: float, wide: float, high: float, color: str) -> None:
        """An ellipse around (x, y) with these half-axes."""
        corners = [((x - wide) * self.edge, (y - high) * self.edge), ((x + wide) * self.edge, (y + high) * self.edge)]
        self.pen.ellipse(corners, fill=self.tint(color))


def wash(*colors: str, top: float = 0.0) -> BrushLayer:
    """Colours flowing from `top` down to the bottom; below the frame's top edge it moves with the horizon."""

    def paint(canvas: Canvas) -> None:
        start = round((top + canvas.lift) * canvas.edge) if top else 0
        stops = np.array([canvas.tint(color) for color in colors], dtype=np.float64)
        at = np.linspace(0, len(colors) - 1, canvas.edge - start)
        column = np.stack([np.interp(at, np.arange(len(colors)), stops[:, channel]) for channel in range(3)], axis=-1)
        strip = Image.fromarray(column.astype(np.uint8)[:, None])
        canvas.image.paste(strip.resize((canvas.edge, canvas.edge - start), Image.Resampling.NEAREST), (0, start))

    return paint


def band(top: float, bottom: float, color: str, left: float = 0.0, right: float = 1.0, fixed: bool = False) -> BrushLayer:
    """A rectangle that moves with the horizon unless fixed."""

    def paint(canvas: Canvas) -> None:
        lift = 0.0 if fixed else canvas.lift
        canvas.box(left, top + lift, right, bottom + lift, color)

    return paint


def disc(x: float, y: float, radius: float, *colors: str) -> BrushLayer:
    """Discs in one another, the largest first."""

    def paint(canvas: Canvas) -> None:
        middle = canvas.near(x, 0.05), canvas.near(y, 0.04)
        size = radius * canvas.near(1, 0.12)
        for rank, color in enumerate(colors):
            canvas.blob(*middle, size * (1 - 0.28 * rank), size * (1 - 0.28 * rank), color)

    return paint


def hills(level: float, height: float, color: str, waves: float = 1.5) -> BrushLayer:
    """Rolling ground below `level`."""

    def paint(canvas: Canvas) -> None:
        phase, pace = canvas.near(0, math.pi), waves * canvas.near(1, 0.2)
        xs = np.linspace(0, 1, 33)
        ys = level + canvas.lift + height / 2 * np.sin(2 * math.pi * pace * xs + phase)
        canvas.polygon([*zip(xs.tolist(), ys.tolist(), strict=True), (1, 1), (0, 1)], color)

    return paint


def spikes(xs: Sequence[float], base: float, tip: float, wide: float, color: str, cap: str = "") -> BrushLayer:
    """Triangles from `base` to about `tip`, upwards or downwards, with a cap of another colour on the tip."""

    def paint(canvas: Canvas) -> None:
        for middle in xs:
            x, half = canvas.near(middle, 0.04), wide / 2 * canvas.near(1, 0.15)
            end = base + (tip - base) * canvas.near(1, 0.15)
            canvas.polygon([(x - half, base), (x, end), (x + half, base)], color)
            if cap:
                edge = end + (base - end) * 0.35
                canvas.polygon([(x - half * 0.35, edge), (x, end), (x + half * 0.35, edge)], cap)

    return paint


def tiles(
    across: float, down: float, *colors: str, gap: float = 0.0, top: float = 0.0, bottom: float = 1.0,
    shift: float = 0.0, mixed: bool = False,
) -> BrushLayer:  # fmt: skip
    """A grid of boxes in the colours by turns, or mixed; every second row shifted by a part of a box, as bricks are."""

    def paint(canvas: Canvas) -> None:
        grow = canvas.near(1, 0.08)
        wide, high = grow / across, grow / down
        start, row = top + (canvas.lift if top else 0), 0
        begin = -wide * canvas.near(1, 0.5)
        y = start
        while y < bottom:
            x, column = begin - wide * shift * (row % 2), 0
            while x < 1:
                color = canvas.pick(colors) if mixed else colors[(row + column) % len(colors)]
                canvas.box(x + gap / 2, y, x + wide - gap / 2, min(y + high - gap, bottom), color)
                x, column = x + wide, column + 1
            y, row = y + high, row + 1

    return paint


def stripes(
    count: float, *colors: str, top: float = 0.0, bottom: float = 1.0, slant: float = 0.0, part: float = 1.0
) -> BrushLayer:
    """Upright or leaning stripes in the colours by turns, each filling a part of its lane."""

    def paint(canvas: Canvas) -> None:
        lane = canvas.near(1, 0.1) / count
        upper = top + (canvas.lift if top else 0)
        x, rank = -lane * canvas.near(1, 0.5) - max(slant, 0), 0
        while x < 1 - min(slant, 0):
            edge = x + lane * part
            color = colors[rank % len(colors)]
            canvas.polygon([(x + slant, upper), (edge + slant, upper), (edge, bottom), (x, bottom)], color)
            x, rank = x + lane, rank + 1

    return paint


def boards(count: int, *colors: str, top: float = 0.0, bottom: float = 1.0) -> BrushLayer:
    """Lying bands in the colours by turns, each broader than the one above it where the floor runs to the viewer."""

    def paint(canvas: Canvas) -> None:
        start = top + (canvas.lift if top else 0)
        edges = start + (bottom - start) * np.linspace(0, 1, count + 1) ** (1.4 if top else 1.0)
        for rank, (upper, lower) in enumerate(pairwise(edges.tolist())):
            canvas.box(0, upper, 1, lower, colors[rank % len(colors)])

    return paint


def dots(
    across: int, down: int, size: float, *colors: str, top: float = 0.0, bottom: float = 1.0, loose: float = 0.3,
    flat: float = 1.0,
) -> BrushLayer:  # fmt: skip
    """Blobs on a grid, `loose` parts of a cell away from their places; `flat` is their height over their width."""

    def paint(canvas: Canvas) -> None:
        start = top + (canvas.lift if top else 0)
        wide, high = 1 / across, (bottom - start) / down
        for row in range(down):
            for column in range(across):
                x = canvas.near((column + 0.25 + 0.5 * (row % 2)) * wide, loose * wide)
                y = canvas.near(start + (row + 0.5) * high, loose * high)
                radius = size * canvas.near(1, loose * 0.7)
                canvas.blob(x, y, radius, radius * flat, canvas.pick(colors))

    return paint


def puffs(across: int, down: int, size: float, color: str, top: float = 0.0, bottom: float = 1.0) -> BrushLayer:
    """Clouds, or crowns of trees: three blobs each, on a loose grid."""

    def paint(canvas: Canvas) -> None:
        for row in range(down):
            for column in range(across):
                x = canvas.near((column + 0.25 + 0.5 * (row % 2)) / across, 0.08 / across)
                y = canvas.near(top + (row + 0.5) * (bottom - top) / down, 0.12 / down)
                part = size * canvas.near(1, 0.2)
                canvas.blob(x - part, y, part * 0.8, part * 0.55, color)
                canvas.blob(x + part, y, part * 0.8, part * 0.5, color)
                canvas.blob(x, y - part * 0.3, part, part * 0.75, color)

    return paint


def trees(xs: Sequence[float], base: float, size: float, trunk: str, *crown: str, pine: bool = False) -> BrushLayer:
    """Round trees or pines standing on `base`, `size` high."""

    def paint(canvas: Canvas) -> None:
        for middle in xs:
            x, foot = canvas.near(middle, 0.03), canvas.near(base + canvas.lift, 0.02)
            high = size * canvas.near(1, 0.12)
            canvas.box(x - 0.1 * high, foot - 0.5 * high, x + 0.1 * high, foot, trunk)
            color = canvas.pick(crown)
            if pine:
                for step in range(3):
                    half, low = (0.36 - 0.08 * step) * high, foot - (0.15 + 0.25 * step) * high
                    canvas.polygon([(x - half, low), (x, low - 0.42 * high), (x + half, low)], color)
            else:
                for side, up in ((-0.17, 0.6), (0.17, 0.6), (0, 0.77)):
                    canvas.blob(x + side * high, foot - up * high, 0.25 * high, 0.23 * high, color)

    return paint


def leaves(spots: Sequence[tuple[float, float, float]], size: float, *colors: str) -> BrushLayer:
    """Long leaves, three to a spot, that fan around a direction in degrees (0 right, 90 down)."""

    def paint(canvas: Canvas) -> None:
        for x, y, toward in spots:
            for rank, turn in enumerate((-38, 38, 0)):
                angle = math.radians(canvas.near(toward + turn, 8))
                long = size * canvas.near(1, 0.15)
                ahead, aside = (math.cos(angle) * long, math.sin(angle) * long), 0.22
                near = (x + 0.45 * ahead[0], y + 0.45 * ahead[1])
                side = (-ahead[1] * aside, ahead[0] * aside)
                tip = (x + ahead[0], y + ahead[1])
                points = [(x, y), (near[0] + side[0], near[1] + side[1]), tip, (near[0] - side[0], near[1] - side[1])]
                canvas.polygon(points, colors[rank % len(colors)])

    return paint


def houses(xs: Sequence[tuple[float, float]], top: float, base: float, window: str, *walls: str) -> BrushLayer:
    """Tall houses over the given (left, right) spans with a grid of windows."""

    def paint(canvas: Canvas) -> None:
        for rank, (left, right) in enumerate(xs):
            roof, foot = canvas.near(top, 0.06), base + canvas.lift
            canvas.box(left, roof, right, foot, walls[rank % len(walls)])
            step = (right - left) / 2
            y = roof + 0.06
            while y + 0.08 < foot:
                for x in (left + 0.2 * step, left + 1.2 * step):
                    canvas.box(x, y, x + 0.6 * step, y + 0.08, window)
                y += 0.15

    return paint


def curtains(wide: float, color: str, shade: str, valance: float = 0.0) -> BrushLayer:
    """Folded cloth down both sides and, if a valance is asked for, scallops along the top."""

    def paint(canvas: Canvas) -> None:
        reach = wide * canvas.near(1, 0.12)
        fold = reach / 4
        for step in range(4):
            hue = (color, shade)[step % 2]
            for left in (step * fold, 1 - (step + 1) * fold):
                canvas.box(left, 0, left + fold, 1, hue)
        for step in range(5 if valance else 0):
            canvas.blob(0.1 + 0.2 * step, 0, 0.11, valance * canvas.near(1, 0.1), (shade, color)[step % 2])

    return paint


def frame(width: float, color: str, inset: float = 0.0) -> BrushLayer:
    """A border along the frame's edges."""

    def paint(canvas: Canvas) -> None:
        thick, far = width * canvas.near(1, 0.15), 1 - inset
        for sides in ((inset, inset, far, inset + thick), (inset, far - thick, far, far)):
            canvas.box(*sides, color)
            canvas.box(sides[1], sides[0], sides[3], sides[2], color)

    return paint


def shape(*points: tuple[float, float], color: str) -> BrushLayer:
    """A polygon that moves with the horizon, except for its points on the frame's edge."""

    def paint(canvas: Canvas) -> None:
        canvas.polygon([(x, y + canvas.lift if 0 < y < 1 else y) for x, y in points], color)

    return paint
