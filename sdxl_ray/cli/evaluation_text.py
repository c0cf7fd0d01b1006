"""An evaluation as lines of text: the table, what each score was measured with, and what is absent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdxl_ray.display.table import Column, Table

if TYPE_CHECKING:
    from sdxl_ray.evaluation.runner import EvaluationResult


def describe(found: EvaluationResult) -> str:
    """The table of models x metrics with intervals, the encoders, and the paired differences that are certain.

    One table a subject where there are several, the last over all of them.
    """
    scores = [row for row in found.scores if "@" not in row["split"] and not row["metric"].endswith("_gain")]
    names = list(dict.fromkeys(row["metric"] for row in scores))
    subjects = list(dict.fromkeys(row["subject"] for row in scores))
    lines = []
    for subject in subjects:
        lines += [f"{subject}:"] if len(subjects) > 1 else []
        lines += [_table([row for row in scores if row["subject"] == subject], names), ""]
    for name in names:
        row = next((row for row in scores if row["metric"] == name and row["value"] is not None), None)
        if row is not None:
            how = f"{row['encoder']} ({row['preprocessing']})" if row["encoder"] else "fixed noise and timesteps"
            lines.append(f"{name}: n {row['n']}, {how}")
    certain = [row for row in found.differences if row["low"] is not None and row["low"] * row["high"] > 0]
    reported = [row for row in certain if row["subject"] == subjects[-1]]
    if reported:
        lines += ["", "differences whose 95 % interval leaves out 0 (same prompts, seeds and photos):"]
        lines += [f"  {row['model']} - {row['against']}: {row['metric']} {_score(row, sign='+')}" for row in reported]
    return "\n".join([*lines, *found.absent])


def _table(rows: list[dict[str, Any]], names: list[str]) -> str:
    at = {(row["model"], row["metric"]): row for row in rows}
    columns = [Column("model", "model"), *(Column(name, name, align="left") for name in names)]
    models = dict.fromkeys(row["model"] for row in rows)
    return Table(
        columns, [{"model": model, **{name: _score(at.get((model, name))) for name in names}} for model in models]
    ).text()


def _score(row: dict[str, Any] | None, sign: str = "") -> str | None:
    if row is None or row["value"] is None:
        return None
    value, low, high = (
        None if number is None else f"{round(number, 3) + 0.0:{sign}.3f}"  # + 0.0: no minus before a zero
        for number in (row["value"], row["low"], row["high"])
    )
    return value if low is None else f"{value} [{low}, {high}]"
