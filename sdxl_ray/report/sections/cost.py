"""Cost: what every arm trained, wrote, held in memory and took, and what quality came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdxl_ray.display.units import bytes_text, count_text, seconds_text
from sdxl_ray.report.document import Cell, DataTable, Panel, Panels, ReportBlock, ReportSection, cell, score_text
from sdxl_ray.report.facts import ArmFacts, ComparisonFacts, main_metric
from sdxl_ray.report.metrics import BASE, Absent, Score, metric_of
from sdxl_ray.report.plots import Dot, dots
from sdxl_ray.report.sections import models

#: (attribute of Cost, title, how it is written)
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("trainable", "trainable parameters", count_text),
    ("artifact_bytes", "artifact size", bytes_text),
    ("peak_bytes", "peak memory of a worker", bytes_text),
    ("step_s", "a step", seconds_text),
    ("train_s", "all steps", seconds_text),
    ("whole_s", "whole run", seconds_text),
    ("samples_per_s", "samples/s", "{:.1f}".format),
    ("steps", "steps", str),
    ("workers", "workers", str),
)

#: What quality is drawn against: (attribute, axis, how a tick is written)
_AXES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("train_s", "time of all steps", seconds_text),
    ("trainable", "trainable parameters", lambda value: f"{value:,.0f}"),
    ("artifact_bytes", "artifact size", lambda value: bytes_text(value).replace(".0 ", " ")),
)


def section(facts: ComparisonFacts) -> ReportSection:
    rows = tuple(
        (
            Cell(arm.name, tone="strong"),
            Cell(arm.method),
            *(cell(getattr(arm.cost, name), write) for name, _, write in COLUMNS),
        )
        for arm in facts.arms
    )
    titles = ("arm", "method", *(title for _, title, _ in COLUMNS))
    caption = (
        "Bytes are the largest over an arm's runs, times the mean; a step is the median. Memory is the allocator's on "
        "a GPU and the process's own on a CPU, without mapped files, once the base is loaded. The whole run prepares, "
        "trains, evaluates and saves."
    )
    blocks: list[ReportBlock] = [DataTable(caption, titles, rows)]
    panels = tuple(panel for axis in _AXES if (panel := _panel(facts, *axis)) is not None)
    if panels:
        blocks.append(Panels("Quality against cost: up and to the left is better.", panels))
    return ReportSection("cost", "Cost of training", "What each arm needed to get there.", tuple(blocks))


def _panel(facts: ComparisonFacts, name: str, axis: str, write: Callable[[Any], str]) -> Panel | None:
    metric, how = metric_of(main_metric(facts)), models.styles(facts)
    found: list[tuple[ArmFacts, float, Score]] = []
    for arm in facts.arms:
        score, cost = facts.score(arm.name, metric.name), getattr(arm.cost, name)
        if isinstance(score, Score) and not isinstance(cost, Absent) and cost > 0:
            found.append((arm, cost, score))
    if not found:
        return None
    base = facts.score(BASE, metric.name)
    marks = {BASE: base.value} if isinstance(base, Score) else {}
    points = [Dot(arm.name, how[arm.name], cost, score) for arm, cost, score in found]
    plot = dots(points, axis, metric.title, write, marks, base=2 if name == "artifact_bytes" else 10)
    said = ", ".join(f"{arm.name} {score_text(score)} for {write(cost)}" for arm, cost, score in found)
    rows: list[tuple[Any, ...]] = [(arm.name, write(cost), s.value, s.low, s.high) for arm, cost, s in found]
    table = models.numbers(("arm", axis, "value", "low", "high"), rows, "{:.3f}".format)
    return Panel(f"{metric.short} against {axis}", plot, f"{metric.title} against {axis}: {said}", table)
