"""Inference: seconds an image, and what fewer steps cost in quality. `latency` has what users of an endpoint wait."""

from __future__ import annotations

import statistics

from sdxl_ray.display.units import seconds_text
from sdxl_ray.report.document import (
    Cell,
    DataTable,
    Panel,
    Panels,
    Paragraph,
    ReportBlock,
    ReportSection,
    absent,
    score_text,
)
from sdxl_ray.report.facts import ComparisonFacts, main_metric
from sdxl_ray.report.metrics import metric_of
from sdxl_ray.report.plots import PlotLine, lines
from sdxl_ray.report.ranking import GUARD
from sdxl_ray.report.scores import DRAWN_WITH, FINAL
from sdxl_ray.report.sections import models


def seconds_per_image(facts: ComparisonFacts, model: str, split: str = FINAL) -> float | None:
    """Median seconds of an image when drawn in batches, as the evaluator drew them. None: not recorded."""
    drawn = [p.seconds for p in facts.images if (p.model, p.split) == (model, split) and p.seconds]
    return statistics.median(drawn) if drawn else None


def section(facts: ComparisonFacts) -> ReportSection:
    steps = facts.card.settings.steps
    rows = []
    for model in models.names(facts):
        seconds = seconds_per_image(facts, model)
        known = seconds is not None and seconds > 0
        rows.append(
            (
                Cell(model, tone="strong"),
                Cell(seconds_text(seconds), number=True) if known and seconds else absent(_WHY),
                Cell(f"{1 / seconds:.2f}", number=True) if known and seconds else absent(_WHY),
            )
        )
    batch = facts.card.settings.batch
    size = f" of {batch}" if batch else ""
    caption = f"Drawing in batches{size}{f', {steps} denoising steps' if steps else ''}, on one worker: medians."
    table = DataTable(caption, ("model", "seconds an image", "images/s"), tuple(rows))
    lead = "What an image costs once a model is there."
    return ReportSection("inference", "Inference", lead, (table, _steps(facts)))


_WHY = "the comparison's records of images hold no seconds"


def _steps(facts: ComparisonFacts) -> ReportBlock:
    found = [panel for name in (main_metric(facts), GUARD) if (panel := _against_steps(facts, name)) is not None]
    if not found:
        known = facts.card.settings.steps
        why = f"every image was drawn with {known} denoising steps" if known else "no other step count was drawn"
        return Paragraph(f"Quality against denoising steps is not measured: {why}.", tone="muted")
    return Panels("Quality against denoising steps.", (*found, *_time_of_steps(facts)))


def _against_steps(facts: ComparisonFacts, name: str) -> Panel | None:
    metric, how = metric_of(name), models.styles(facts)
    curves, rows = [], []
    for model in models.names(facts):
        points = sorted(
            (n, s) for (m, metric_name, n), s in facts.scores.drawn.items() if (m, metric_name) == (model, name)
        )
        if len(points) > 1:
            curves.append(
                PlotLine(model, how[model], tuple((n, s.value) for n, s in points), tuple(s.bounded for _, s in points))
            )
            rows += [(model, n, s.value, s.low, s.high) for n, s in points]
    if not curves:
        return None
    said = "; ".join(
        f"{line.name}: "
        + ", ".join(f"{n} steps {score_text(facts.scores.drawn[line.name, name, int(n)])}" for n, _ in line.points)
        for line in curves
    )
    table = models.numbers(
        ("model", "denoising steps", "value", "low", "high"),
        rows,
        lambda value: f"{value:.3f}" if isinstance(value, float) else str(value),
    )
    plot = lines(curves, "denoising steps", f"{metric.short}, {metric.better} is better")
    return Panel(f"{metric.title} against denoising steps", plot, said, table)


def _time_of_steps(facts: ComparisonFacts) -> tuple[Panel, ...]:
    how, curves, rows = models.styles(facts), [], []
    counts = sorted({n for _, _, n in facts.scores.drawn})
    for model in models.names(facts):
        times = [(n, seconds_per_image(facts, model, f"{DRAWN_WITH}{n}")) for n in counts]
        points = [(n, seconds) for n, seconds in times if seconds is not None]
        if len(points) > 1:
            curves.append(PlotLine(model, how[model], tuple(points)))
            rows += [(model, n, seconds) for n, seconds in points]
    if not curves:
        return ()
    said = "; ".join(f"{line.name}: " + ", ".join(f"{n} steps {s:.3g} s" for n, s in line.points) for line in curves)
    table = models.numbers(("model", "denoising steps", "seconds an image"), rows, "{:.3g}".format)
    return (Panel("Seconds an image", lines(curves, "denoising steps", "seconds, lower is better"), said, table),)
