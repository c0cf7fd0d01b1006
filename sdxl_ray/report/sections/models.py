"""The models of a report in their order, their words and how they are drawn: the same in every section."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdxl_ray.report.document import Cell, DataTable
from sdxl_ray.report.facts import ComparisonFacts
from sdxl_ray.report.metrics import BASE, REFERENCES, Score
from sdxl_ray.report.plots import BASE_STYLE, ArmStyle, style

NO_EVALUATIONS = "no look at a validation set is recorded (evaluation.every is 0, or the runs are not here)"


def names(facts: ComparisonFacts) -> list[str]:
    """The base, then every arm."""
    return [BASE, *(arm.name for arm in facts.arms)]


def styles(facts: ComparisonFacts) -> dict[str, ArmStyle]:
    return {BASE: BASE_STYLE} | {arm.name: style(index) for index, arm in enumerate(facts.arms)}


def references(facts: ComparisonFacts, metric: str) -> dict[str, Score]:
    """The reference rows that were scored, by their short names."""
    found = {name: facts.score(name, metric) for name in REFERENCES}
    return {name: score for name, score in found.items() if isinstance(score, Score)}


def numbers(titles: tuple[str, ...], rows: list[tuple[Any, ...]], write: Callable[[Any], str]) -> DataTable:
    """The numbers behind a plot: names stay as they are, numbers are written by `write`. At most about 20 rows."""
    step = max(1, -(-len(rows) // 20))
    kept = [row for place, row in enumerate(rows) if place % step == 0 or place == len(rows) - 1]
    body = tuple(
        tuple(
            Cell("", tone="muted") if v is None else Cell(v) if isinstance(v, str) else Cell(write(v), number=True)
            for v in row
        )
        for row in kept
    )
    return DataTable("The numbers", titles, body)
