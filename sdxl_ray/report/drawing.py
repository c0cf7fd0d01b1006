"""Figures for pages and files: inline SVG whose colours are the page's own variables, and PNG.

Figures are drawn with placeholder colours. In SVG they become CSS variables (`var(--arm-0)`, `currentColor`) and text
stays text, so light, dark and print need no script; in PNG they become the page's light colours. A figure is about as
wide as a phone, so that its text is readable there at its own size.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

#: How many colours the page has: `--arm-0` and so on.
COLOURS = 7

INK, RULE, SOFT = "#010203", "#040506", "#070809"
_VARIABLES = {INK: "currentColor", RULE: "var(--rule)", SOFT: "var(--soft)"} | {
    f"#0a0b{index:02x}": f"var(--arm-{index})" for index in range(COLOURS)
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sdxl-ray",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 11,
}
_WIDTH = 5.0  # inches of 72 points: 360 px, a phone's column


@dataclass(frozen=True)
class Drawing:
    """A plot: called, it is markup for a page; `png` gives it as a file. draw: takes matplotlib's axes."""

    draw: Callable[[Any], None]
    height: float

    def __call__(self) -> str:
        return _svg(self.draw, self.height)

    def png(self, dpi: int = 200) -> bytes:
        """The plot in the page's light colours on white."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        buffer = io.BytesIO()
        with _figure(self.draw, self.height, FigureCanvasAgg) as figure:
            figure.draw_without_rendering()  # makes the ticks, which have colours too
            _recolour(figure)
            figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def _figure(draw: Callable[[Any], None], height: float, canvas: Callable[[Any], object]) -> Iterator[Any]:
    """Fresh axes that are drawn on, without pyplot's global state; canvas: matplotlib's, for the kind of file."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that its font lacks: the reader's browser chooses the font
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        canvas(figure)
        draw(figure.add_subplot())
        yield figure


def _svg(draw: Callable[[Any], None], height: float) -> str:
    """Draw, and take the image apart for inlining."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with _figure(draw, height, FigureCanvasSVG) as figure:
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue())


def _recolour(figure: Any) -> None:
    """Put the page's light colours in the place of the placeholders."""
    from matplotlib.colors import to_hex, to_rgb, to_rgba

    colours = _light_colours()
    for artist in figure.findobj():
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            get, put = (getattr(artist, f"{verb}_{name}", None) for verb in ("get", "set"))
            if get is None or put is None:
                continue
            try:
                found = to_rgba(get())
            except (TypeError, ValueError):  # none, or one for each of many
                continue
            if (colour := colours.get(to_hex(found))) is not None:
                put((*to_rgb(colour), found[3]))


@cache
def _light_colours() -> dict[str, str]:
    """Placeholder -> colour, of the page's style sheet, whose first rule is the light one."""
    style_sheet = (resources.files("sdxl_ray.report") / "templates" / "report.css").read_text(encoding="utf-8")
    light = style_sheet.partition("}")[0]
    known = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    named = {INK: "ink", RULE: "rule", SOFT: "soft"} | {f"#0a0b{n:02x}": f"arm-{n}" for n in range(COLOURS)}
    return {placeholder: known[name] for placeholder, name in named.items()}


def inline(svg: str) -> str:
    """Markup for the middle of a page: no declaration, no fixed size, the page's font, colours and style."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns:xlink|xmlns)="[^"]*"', "", head)
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)  # only markers and clip paths are referred to
    rest = re.sub(r"font-family: [^;\"]*;? ?", "", rest).replace("xlink:href", "href")
    # Hundredths of a point are finer than any screen; only in paths, which hold no text.
    rest = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]).replace("\n", ""), rest)
    for placeholder, variable in _VARIABLES.items():
        rest = rest.replace(placeholder, variable)
    return f"{head.replace('<svg', _OPEN, 1)}>{rest}"


#: How every inlined figure begins; the page puts its description in.
_OPEN = '<svg class="plot" role="img"'


def described(svg: str, alt: str, number: int) -> str:
    """The figure with its description, and with ids that no other figure of the page has."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="p{number}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#p{number}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#p{number}-\1"', svg)
    return svg.replace(_OPEN, f'{_OPEN} aria-label="{html.escape(alt)}"', 1)
