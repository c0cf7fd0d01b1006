"""The kinds of plots that pages have.

The palette is that of Okabe and Ito (2008), told apart by every common kind of colour blindness; markers and lines
differ too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdxl_ray.report.drawing import COLOURS, RULE, SOFT, Drawing
from sdxl_ray.report.metrics import Score

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


@dataclass(frozen=True)
class ArmStyle:
    """How one arm is drawn, everywhere."""

    colour: str
    marker: str
    dash: Any


BASE_STYLE = ArmStyle(SOFT, "o", "-")


def style(index: int) -> ArmStyle:
    """The look of the arm at that place; after seven, colours come again with other lines."""
    return ArmStyle(
        f"#0a0b{index % COLOURS:02x}", MARKERS[index % len(MARKERS)], DASHES[index // COLOURS % len(DASHES)]
    )


def intervals(rows: Sequence[tuple[str, Score, ArmStyle]], marks: Mapping[str, float], axis: str) -> Drawing:
    """A dot with its interval for each row, top down; marks: vertical lines with a name (ceiling, floor)."""

    def draw(axes: Any) -> None:
        for place, (_, score, how) in enumerate(rows):
            span = score.bounded
            if span is not None:
                axes.plot(span, (place, place), color=how.colour, linewidth=2.4, solid_capstyle="butt", alpha=0.75)
            axes.plot([score.value], [place], how.marker, color=how.colour, markersize=7)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5 - 0.6 * bool(marks))
        order = sorted(marks.items(), key=lambda mark: mark[1])
        for place, (name, value) in enumerate(order):
            axes.axvline(value, color=SOFT, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
            # Two names may be of nearly one value: they are written away from each other.
            side = "center" if len(order) == 1 else "right" if place == 0 else "left"
            axes.annotate(
                f" {name} ",
                (value, 1),
                xycoords=("data", "axes fraction"),
                ha=side,
                va="top",
                fontsize=10.5,
                color=SOFT,
            )
        axes.margins(x=0.12)
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(axis)
        axes.spines["left"].set_visible(False)

    return Drawing(draw, height=0.75 + 0.4 * (len(rows) + 0.6 * bool(marks)))


@dataclass(frozen=True)
class PlotLine:
    """One curve: points (x, value), its interval where known, and the mark at each point."""

    name: str
    how: ArmStyle
    points: tuple[tuple[float, float], ...]
    bounds: tuple[tuple[float, float] | None, ...] = ()
    marked: bool = True


def lines(curves: Sequence[PlotLine], x: str, y: str, *, log_y: bool = False) -> Drawing:
    """Curves over a common axis, with a legend under them. Curves of equal name share one legend entry."""

    def draw(axes: Any) -> None:
        shown: set[str] = set()
        for curve in curves:
            xs, ys = [point[0] for point in curve.points], [point[1] for point in curve.points]
            axes.plot(
                xs,
                ys,
                color=curve.how.colour,
                linestyle=curve.how.dash,
                linewidth=1.8,
                marker=curve.how.marker if curve.marked else None,
                markersize=5,
                label=curve.name if curve.name not in shown else None,
            )
            shown.add(curve.name)
            if curve.bounds and all(curve.bounds):
                spans = [span for span in curve.bounds if span is not None]
                axes.fill_between(xs, *zip(*spans, strict=True), color=curve.how.colour, alpha=0.13, linewidth=0)
        if log_y:
            axes.set_yscale("log")
        if all(isinstance(value, int) for curve in curves for value, _ in curve.points):
            axes.xaxis.get_major_locator().set_params(integer=True)  # half a step or photo is nothing
        _finish(axes, x, y)

    return Drawing(draw, height=3.1 + 0.22 * _legend_rows([curve.name for curve in curves]))


@dataclass(frozen=True)
class Dot:
    """One point with intervals in y."""

    name: str
    how: ArmStyle
    x: float
    score: Score


def dots(
    points: Sequence[Dot], x: str, y: str, write_x: Callable[[float], str], marks: Mapping[str, float], base: int = 10
) -> Drawing:
    """Points over a logarithmic axis, those of equal name with one legend entry.

    marks: horizontal lines with a name; base: of the ticks' round numbers.
    """

    def draw(axes: Any) -> None:
        axes.set_xscale("log")
        shown: set[str] = set()
        for point in points:
            span = point.score.bounded
            if span is not None:
                axes.plot((point.x, point.x), span, color=point.how.colour, linewidth=2.4, alpha=0.75)
            axes.plot([point.x], [point.score.value], point.how.marker, color=point.how.colour, markersize=8,
                      label=point.name if point.name not in shown else None)  # fmt: skip
            shown.add(point.name)
        for name, value in marks.items():
            axes.axhline(value, color=SOFT, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
            axes.annotate(name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=10.5,
                          color=SOFT)  # fmt: skip
        lowest, highest = min(p.x for p in points), max(p.x for p in points)
        axes.set_xlim(lowest / 1.6, highest * 1.6)
        _log_ticks(axes, write_x, base)
        _finish(axes, x, y)

    return Drawing(draw, height=3.1 + 0.22 * _legend_rows([point.name for point in points]))


@dataclass(frozen=True)
class Axis:
    """One upright of parallel coordinates; ticks: (height in 0..1, text)."""

    name: str
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Strand:
    """One line across the uprights, heights in 0..1; it passes those by where it has None. strong: drawn on top."""

    name: str
    how: ArmStyle
    heights: tuple[float | None, ...]
    strong: bool = False


def parallel(uprights: Sequence[Axis], strands: Sequence[Strand]) -> Drawing:
    """Parallel coordinates: a line for every trial through its parameters to its score, on the right."""

    def draw(axes: Any) -> None:
        for place, upright in enumerate(uprights):
            axes.axvline(place, color=RULE, linewidth=1, zorder=0)
            for height, text in upright.ticks:
                beside = 0 <= height <= 1  # the choices; bounds stand above and below
                axes.annotate(text, (place, height), xytext=(6 if beside else 0, 0), textcoords="offset points",
                              fontsize=9, color=SOFT, ha="left" if beside else "center", va="center")  # fmt: skip
        shown: set[str] = set()
        for strand in sorted(strands, key=lambda strand: strand.strong):
            known = [(place, height) for place, height in enumerate(strand.heights) if height is not None]
            axes.plot(*zip(*known, strict=True), color=strand.how.colour, linestyle=strand.how.dash,
                      marker=strand.how.marker, markersize=4 + 2 * strand.strong, linewidth=2.6 if strand.strong else 1,
                      alpha=1 if strand.strong else 0.45,
                      label=strand.name if strand.name not in shown else None)  # fmt: skip
            shown.add(strand.name)
        axes.set_xticks(range(len(uprights)), [upright.name for upright in uprights], rotation=20, ha="right")
        axes.set_yticks([])
        axes.set_ylim(-0.08, 1.08)
        axes.spines["left"].set_visible(False)
        _finish(axes, "", "")

    return Drawing(draw, height=3.4 + 0.22 * _legend_rows([strand.name for strand in strands]))


def scatter(points: Sequence[tuple[str, ArmStyle, float, float, str]], x: str, y: str) -> Drawing:
    """(name, look, x, y, mark beside it) on plain axes; points of equal name share one legend entry."""

    def draw(axes: Any) -> None:
        shown: set[str] = set()
        for name, how, across, up, mark in points:
            axes.plot([across], [up], how.marker, color=how.colour, markersize=7,
                      label=name if name not in shown else None)  # fmt: skip
            axes.annotate(mark, (across, up), xytext=(5, 4), textcoords="offset points", fontsize=9, color=SOFT)
            shown.add(name)
        axes.margins(0.12)
        _finish(axes, x, y)

    return Drawing(draw, height=3.1 + 0.22 * _legend_rows([point[0] for point in points]))


def smooth(values: Sequence[float], width: int) -> list[float]:
    """The mean of the `width` values up to each one: a step's loss alone says little."""
    window: list[float] = []
    means = []
    for value in values:
        window = [*window[-(width - 1) :], value] if width > 1 else [value]
        means.append(sum(window) / len(window))
    return means


def _log_ticks(axes: Any, write: Callable[[float], str], base: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axes.get_xlim()
    fine = base == 10 and high / low < 100
    axes.xaxis.set_major_locator(LogLocator(base=base, subs=(1, 2, 5) if fine else (1,), numticks=5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _per_row(names: Sequence[str]) -> int:
    """Legend entries side by side: as many as their letters leave room for."""
    longest = max(len(name) for name in names)
    return min(len(set(names)), max(1, 48 // (longest + 5)))


def _legend_rows(names: Sequence[str]) -> int:
    return -(-len(set(names)) // _per_row(names))


def _finish(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", color=SOFT, fontsize=10.5)
    axes.grid(visible=True, axis="y")
    axes.tick_params(labelcolor=SOFT)
    names = axes.get_legend_handles_labels()[1]
    axes.figure.legend(loc="outside lower center", ncols=_per_row(names), handlelength=1.8, columnspacing=1.0)
