"""Inference: seconds a picture, and what fewer steps cost in quality. `latency` has what users of an endpoint wait."""

from __future__ import annotations

from sdxl_ray.display.units import seconds_text
from sdxl_ray.report.document import Block, Cell, DataTable, Panel, Panels, Paragraph, Section, absent, score_text
from sdxl_ray.report.facts import Facts, main_metric
from sdxl_ray.report.metrics import metric_of
from sdxl_ray.report.plots import Line, lines
from sdxl_ray.report.sections import models

#: `timings` of a comparison: `draw:<model>` are the seconds of drawing every picture of that model.
DRAW = "draw:"


def seconds_per_picture(facts: Facts, model: str) -> float | None:
    """Seconds of a picture when drawn in batches, as the evaluator drew them. None: not recorded."""
    seconds = facts.timings.get(f"{DRAW}{model}")
    drawn = sum(1 for picture in facts.pictures if picture.model == model and picture.purpose != "real")
    return seconds / drawn if seconds and drawn else None


def section(facts: Facts) -> Section:
    steps = facts.card.settings.steps
    rows = []
    for model in models.names(facts):
        seconds = seconds_per_picture(facts, model)
        known = seconds is not None and seconds > 0
        rows.append(
            (
                Cell(model, tone="strong"),
                Cell(seconds_text(seconds), number=True) if known and seconds else absent(_WHY),
                Cell(f"{1 / seconds:.2f}", number=True) if known and seconds else absent(_WHY),
            )
        )
    caption = f"Drawing in batches{f', {steps} denoising steps' if steps else ''}, as the evaluation did it."
    table = DataTable(caption, ("model", "seconds a picture", "pictures/s"), tuple(rows))
    lead = "What a picture costs once a model is there."
    return Section("inference", "Inference", lead, (table, _steps(facts)))


_WHY = "the comparison's timings have no draw:<model>"


def _steps(facts: Facts) -> Block:
    metric = metric_of(main_metric(facts))
    how, curves, rows = models.looks(facts), [], []
    for model in models.names(facts):
        points = sorted((n, s) for (m, name, n), s in facts.scores.drawn.items() if (m, name) == (model, metric.name))
        if len(points) > 1:
            curves.append(
                Line(model, how[model], tuple((n, s.value) for n, s in points), tuple(s.bounded for _, s in points))
            )
            rows += [(model, n, s.value, s.low, s.high) for n, s in points]
    if not curves:
        known = facts.card.settings.steps
        why = f"every picture was drawn with {known} denoising steps" if known else "no other step count was drawn"
        return Paragraph(f"Quality against denoising steps is not measured: {why}.", tone="muted")
    said = "; ".join(
        f"{model}: " + ", ".join(f"{n} steps {score_text(facts.scores.drawn[model, metric.name, n])}" for n in counts)
        for model, counts in ((line.name, [int(x) for x, _ in line.points]) for line in curves)
    )
    table = models.numbers(
        ("model", "denoising steps", "value", "low", "high"),
        rows,
        lambda value: f"{value:.3f}" if isinstance(value, float) else str(value),
    )
    svg = lines(curves, "denoising steps", f"{metric.short}, {metric.better} is better")
    return Panels(
        "Quality against denoising steps.", (Panel(f"{metric.title} against denoising steps", svg, said, table),)
    )
