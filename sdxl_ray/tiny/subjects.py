"""The subjects shipped with the package: two drawn toys, each seen in eight places.

    python -m sdxl_ray.tiny.subjects          # draws every picture again, pixel for pixel

Five pictures are there to train on and three, in `held_out/`, to judge with. Every shape is drawn by the code below at
four times its size and averaged down, so that nobody's photographs or artwork are needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from sdxl_ray.errors import UserError, nearest

SIZE = 64  # pixels of a finished picture
TRAINING, HELD_OUT = 5, 3
_OVERSAMPLING = 4
_FOLDER = Path(__file__).parent / "subjects"

Point = tuple[float, float]


@dataclass(frozen=True)
class View:
    """How a subject stands in one picture: place, centre and half height as shares of the picture, tilt in degrees."""

    place: str
    x: float
    y: float
    scale: float
    tilt: float = 0.0


#: Training views first, then the held-out ones, which have places of their own.
_VIEWS = (
    View("meadow", 0.50, 0.56, 0.37),
    View("beach", 0.46, 0.55, 0.33, -8),
    View("wall", 0.54, 0.52, 0.38, 5),
    View("night", 0.50, 0.55, 0.35, 10),
    View("room", 0.55, 0.57, 0.32, -4),
    View("snow", 0.48, 0.55, 0.36, 6),
    View("desert", 0.53, 0.56, 0.33, -6),
    View("stage", 0.50, 0.53, 0.38),
)


class Pen:
    """Draws in the subject's own coordinates: x to the right and y down, both about -1 to 1, tilted and placed."""

    def __init__(self, canvas: Image.Image, view: View) -> None:
        self._draw = ImageDraw.Draw(canvas)
        self._edge = canvas.width
        self._view = view

    def polygon(self, points: Sequence[Point], color: str) -> None:
        self._draw.polygon([self._place(point) for point in points], fill=color)

    def box(self, left: float, top: float, right: float, bottom: float, color: str) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color)

    def oval(self, x: float, y: float, across: float, down: float, color: str) -> None:
        """An ellipse with radii `across` and `down`, as a polygon so that it tilts with the rest."""
        turns = [2 * math.pi * step / 48 for step in range(48)]
        self.polygon([(x + across * math.cos(turn), y + down * math.sin(turn)) for turn in turns], color)

    def arc(self, x: float, y: float, radius: float, *, begin: float, end: float, width: float, color: str) -> None:
        """A thick part of a circle, between two angles in degrees, clockwise from the right."""
        turns = [math.radians(begin + (end - begin) * step / 24) for step in range(25)]
        outer = [(x + (radius + width / 2) * math.cos(t), y + (radius + width / 2) * math.sin(t)) for t in turns]
        inner = [(x + (radius - width / 2) * math.cos(t), y + (radius - width / 2) * math.sin(t)) for t in turns]
        self.polygon([*outer, *reversed(inner)], color)

    def _place(self, point: Point) -> Point:
        turn = math.radians(self._view.tilt)
        x = point[0] * math.cos(turn) - point[1] * math.sin(turn)
        y = point[0] * math.sin(turn) + point[1] * math.cos(turn)
        return (
            self._edge * (self._view.x + self._view.scale * x),
            self._edge * (self._view.y + self._view.scale * y),
        )


def robot(pen: Pen) -> None:
    """A teal toy robot with an orange chest dial, one eye larger than the other, and a bent red antenna."""
    for side in (-1, 1):
        pen.box(side * 0.30 - 0.14, 0.62, side * 0.30 + 0.14, 0.95, "#37474f")  # legs
        pen.oval(side * 0.34, 0.95, 0.24, 0.10, "#ff7043")  # feet
        pen.box(side * 0.70 - 0.11, -0.02, side * 0.70 + 0.11, 0.48, "#00796b")  # arms
        pen.oval(side * 0.70, 0.52, 0.16, 0.14, "#fdd835")  # hands
    pen.box(-0.58, -0.08, 0.58, 0.68, "#009688")  # body
    pen.box(-0.58, 0.54, 0.58, 0.68, "#00695c")
    pen.oval(0.0, 0.24, 0.26, 0.26, "#fff3e0")  # dial
    pen.oval(0.0, 0.24, 0.20, 0.20, "#ff9800")
    pen.polygon([(-0.04, 0.26), (0.13, 0.10), (0.04, 0.30)], "#4e342e")
    pen.box(-0.14, -0.18, 0.14, -0.06, "#37474f")  # neck
    pen.box(-0.48, -0.76, 0.48, -0.16, "#26a69a")  # head
    pen.oval(-0.20, -0.50, 0.19, 0.19, "#ffffff")
    pen.oval(-0.18, -0.48, 0.09, 0.09, "#1a237e")
    pen.oval(0.24, -0.50, 0.12, 0.12, "#ffffff")
    pen.oval(0.25, -0.49, 0.06, 0.06, "#1a237e")
    pen.box(-0.24, -0.30, 0.28, -0.23, "#4e342e")  # mouth
    pen.polygon([(-0.04, -0.74), (0.04, -0.74), (0.10, -0.90), (0.26, -0.98), (0.22, -1.04), (0.03, -0.95)], "#b71c1c")
    pen.oval(0.28, -1.02, 0.10, 0.10, "#f44336")


def teapot(pen: Pen) -> None:
    """A round cobalt teapot with a yellow zigzag band, a pink lid with a green knob, and a curved spout."""
    pen.arc(0.66, 0.10, 0.34, begin=-100, end=100, width=0.15, color="#1a237e")  # handle
    pen.polygon(
        [(-0.50, 0.34), (-0.98, -0.30), (-1.08, -0.34), (-0.84, -0.42), (-0.78, -0.30), (-0.44, 0.02)], "#283593"
    )
    pen.oval(0.0, 0.72, 0.46, 0.12, "#1a237e")  # foot
    pen.oval(0.0, 0.18, 0.74, 0.60, "#3949ab")  # body
    pen.oval(-0.30, -0.10, 0.20, 0.13, "#7986cb")  # light on it
    teeth = [(-0.70 + 0.14 * step, 0.12 if step % 2 else 0.30) for step in range(11)]
    pen.polygon([*teeth, *((x, y + 0.13) for x, y in reversed(teeth))], "#fdd835")
    pen.oval(0.0, -0.40, 0.44, 0.16, "#ec407a")  # lid
    pen.oval(0.0, -0.46, 0.34, 0.10, "#f48fb1")
    pen.oval(0.0, -0.62, 0.13, 0.13, "#66bb6a")


#: name -> (how it is drawn, class as a prompt says it)
SUBJECTS: dict[str, tuple[Callable[[Pen], None], str]] = {"robot": (robot, "robot"), "teapot": (teapot, "teapot")}


def folder(name: str) -> Path:
    """The folder of a shipped subject: pictures 0.png to 4.png, `held_out/` and `card.json`.

    Raises UserError when there is no such subject, naming the nearest.
    """
    if name not in SUBJECTS:
        raise UserError(f"no subject {name!r} is shipped: {nearest(name, SUBJECTS)}")
    return _FOLDER / name


def picture(name: str, number: int) -> Image.Image:
    """Draw picture `number` (0 to 7) of a subject: RGB, 64 x 64."""
    view = _VIEWS[number]
    canvas = _place(view.place, SIZE * _OVERSAMPLING)
    pen = Pen(canvas, view)
    pen.oval(0.0, 1.0 if name == "robot" else 0.80, 0.80, 0.10, _darker(_PLACES[view.place][1]))
    SUBJECTS[name][0](pen)
    # reduce() averages whole blocks in integers: the same pixels everywhere.
    return canvas.reduce(_OVERSAMPLING)


def card(name: str) -> dict[str, str]:
    """What a person or a recipe needs to know about a subject."""
    draw, class_name = SUBJECTS[name]
    return {
        "name": name,
        "class_name": class_name,
        "subject": f"sks {class_name}",
        "prompt": f"a photo of sks {class_name}",
        "description": (draw.__doc__ or "").strip(),
        "origin": "drawn by sdxl_ray/tiny/subjects.py",
        "licence": "Apache-2.0",
    }


def write(target: Path) -> None:
    """Write every subject below `target`."""
    for name in SUBJECTS:
        held_out = target / name / "held_out"
        held_out.mkdir(parents=True, exist_ok=True)
        for number in range(TRAINING):
            picture(name, number).save(target / name / f"{number}.png", optimize=True)
        for number in range(HELD_OUT):
            picture(name, TRAINING + number).save(held_out / f"{number}.png", optimize=True)
        (target / name / "card.json").write_text(json.dumps(card(name), indent=2) + "\n")


def _darker(color: str) -> str:
    """The colour in the shadow of the subject."""
    return "#" + "".join(f"{int(color[at : at + 2], 16) * 7 // 10:02x}" for at in (1, 3, 5))


def _place(name: str, edge: int) -> Image.Image:
    """A simple background: a sky or wall, a ground, and something that tells the place."""
    sky, ground, horizon = _PLACES[name]
    canvas = Image.new("RGB", (edge, edge), sky)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, round(horizon * edge), edge, edge), fill=ground)

    def dots(points: Sequence[Point], radius: float, color: str) -> None:
        for x, y in points:
            draw.ellipse(
                ((x - radius) * edge, (y - radius) * edge, (x + radius) * edge, (y + radius) * edge), fill=color
            )

    if name == "meadow":
        dots([(0.08, 0.74), (0.20, 0.90), (0.86, 0.80), (0.93, 0.93), (0.70, 0.95)], 0.025, "#ffee58")
        dots([(0.85, 0.14)], 0.09, "#fff176")
    elif name == "beach":
        draw.rectangle((0, round(0.42 * edge), edge, round(0.58 * edge)), fill="#039be5")
        dots([(0.12, 0.86), (0.88, 0.78)], 0.03, "#ffab91")
    elif name == "wall":
        for row in range(6):
            y = round(row * edge / 8)
            draw.line((0, y, edge, y), fill="#8d6e63", width=4)
            for column in range(5):
                x = round((column + 0.5 * (row % 2)) * edge / 4)
                draw.line((x, y, x, y + edge // 8), fill="#8d6e63", width=4)
    elif name == "night":
        dots([(0.10, 0.12), (0.30, 0.06), (0.92, 0.30), (0.72, 0.10), (0.08, 0.40)], 0.012, "#fffde7")
        dots([(0.88, 0.12)], 0.07, "#fff9c4")
    elif name == "room":
        draw.rectangle((round(0.06 * edge), round(0.08 * edge), round(0.32 * edge), round(0.40 * edge)), fill="#e3f2fd")
        draw.line(
            (round(0.19 * edge), round(0.08 * edge), round(0.19 * edge), round(0.40 * edge)), fill="#6d4c41", width=6
        )
    elif name == "snow":
        dots([(0.10, 0.15), (0.35, 0.08), (0.65, 0.20), (0.90, 0.10), (0.92, 0.45), (0.08, 0.50)], 0.02, "#ffffff")
    elif name == "desert":
        draw.polygon([(0, 0.62 * edge), (0.30 * edge, 0.34 * edge), (0.62 * edge, 0.62 * edge)], fill="#ef6c00")
        dots([(0.86, 0.18)], 0.08, "#fff59d")
    else:
        draw.polygon([(0, 0), (0.16 * edge, 0), (0.08 * edge, 0.8 * edge), (0, 0.8 * edge)], fill="#8e0000")
        draw.polygon([(edge, 0), (0.84 * edge, 0), (0.92 * edge, 0.8 * edge), (edge, 0.8 * edge)], fill="#8e0000")
    return canvas


#: place -> (colour of the sky or wall, colour of the ground, height of the horizon as a share from the top)
_PLACES = {
    "meadow": ("#90caf9", "#7cb342", 0.62),
    "beach": ("#b3e5fc", "#ffe0a3", 0.57),
    "wall": ("#bcaaa4", "#78909c", 0.76),
    "night": ("#1a1f4b", "#2e4a3f", 0.72),
    "room": ("#ce93d8", "#a1887f", 0.70),
    "snow": ("#b0bec5", "#eceff1", 0.55),
    "desert": ("#ffcc80", "#e6a15c", 0.60),
    "stage": ("#4a148c", "#d7a86e", 0.78),
}


if __name__ == "__main__":
    write(_FOLDER)
