"""Learning: quality against steps, losses, best checkpoint against last, and quality against the number of photos."""

from __future__ import annotations

from sdxl_ray.report.document import (
    Cell,
    DataTable,
    Panel,
    Panels,
    Paragraph,
    ReportBlock,
    ReportSection,
    score_cell,
    score_text,
)
from sdxl_ray.report.facts import ArmFacts, ComparisonFacts, Curves, main_metric
from sdxl_ray.report.metrics import METRICS, QUALITY, Absent, Score, metric_of
from sdxl_ray.report.plots import PlotLine, lines, smooth, style
from sdxl_ray.report.sections import models

_SMOOTHING = 20  # steps


def section(facts: ComparisonFacts) -> ReportSection:
    blocks: list[ReportBlock] = []
    quality = _quality(facts)
    if quality:
        blocks.append(Panels("Quality against steps, on the validation prompts that chose the checkpoint.", quality))
        blocks += [Paragraph(text) for text in _course(facts)]
    else:
        blocks.append(Paragraph(f"Quality against steps is not measured: {models.NO_EVALUATIONS}.", tone="muted"))
    losses = tuple(panel for panel in (_validation(facts), _training(facts)) if panel is not None)
    if losses:
        blocks.append(Panels("Learning curves.", losses))
    else:
        blocks.append(Paragraph("Learning curves are not measured: the runs' records are not here.", tone="muted"))
    if facts.scores.checkpoints:
        blocks.append(_checkpoints(facts))
    blocks.append(_photos(facts))
    lead = "When an arm had learned, when it began to forget, and how many photos that took."
    return ReportSection("learning", "Learning", lead, tuple(blocks))


def _quality(facts: ComparisonFacts) -> tuple[Panel, ...]:
    names = [name for name in (QUALITY.name, *METRICS) if any(curve.quality.get(name) for _, curve in _all(facts))]
    return tuple(_quality_panel(facts, name) for name in names)


def _course(facts: ComparisonFacts) -> list[str]:
    """What became of each run that its own scores led: the step that was kept, and what they said of the rest."""
    reported = []
    for arm, curve in _all(facts):
        if curve.kept is None:
            continue
        last = curve.loss[-1][0] if curve.loss else curve.kept
        kept = f"{_label(arm, curve)}: step {curve.kept} of {last} was kept"
        if curve.stopped:
            kept += f"; training stopped at step {last}, as quality no longer rose"
        if curve.overfitting is not None:
            step, text = curve.overfitting
            kept += f"; overfitting showed at step {step}: {text}"
        reported.append(f"{kept}.")
    return reported


def _quality_panel(facts: ComparisonFacts, name: str) -> Panel:
    metric, how = metric_of(name), models.styles(facts)
    curves, rows = [], []
    for arm, curve in _all(facts):
        points = curve.quality.get(name, ())
        if points:
            curves.append(
                PlotLine(
                    arm.name,
                    how[arm.name],
                    tuple((step, score.value) for step, score in points),
                    tuple(score.bounded for _, score in points) if len(arm.curves) == 1 else (),
                )
            )
            rows += [(_label(arm, curve), step, score.value, score.low, score.high) for step, score in points]
    ends = ", ".join(f"{line.name} from {line.points[0][1]:.3f} to {line.points[-1][1]:.3f}" for line in curves)
    table = models.numbers(("arm", "step", "value", "low", "high"), rows, _number)
    plot = lines(curves, "step", f"{metric.short}, {metric.better} is better")
    return Panel(metric.title, plot, f"{metric.title} against steps: {ends}", table)


def _validation(facts: ComparisonFacts) -> Panel | None:
    curves = [(arm, curve, curve.validation) for arm, curve in _all(facts) if curve.validation]
    return _loss("Validation loss", "fixed noise, held-out photos", curves, facts, width=1) if curves else None


def _training(facts: ComparisonFacts) -> Panel | None:
    curves = [(arm, curve, curve.loss) for arm, curve in _all(facts) if curve.loss]
    return _loss("Training loss", f"mean of {_SMOOTHING} steps", curves, facts, _SMOOTHING) if curves else None


def _loss(
    title: str,
    axis: str,
    found: list[tuple[ArmFacts, Curves, tuple[tuple[int, float], ...]]],
    facts: ComparisonFacts,
    width: int,
) -> Panel:
    how, curves, rows = models.styles(facts), [], []
    for arm, curve, points in found:
        values = smooth([value for _, value in points], width)
        joined = tuple(zip((step for step, _ in points), values, strict=True))
        curves.append(PlotLine(arm.name, how[arm.name], joined, marked=width == 1))
        every = max(1, len(joined) // 6)
        rows += [(_label(arm, curve), step, value) for step, value in (*joined[::every], joined[-1])]
    ends = ", ".join(f"{line.name} from {line.points[0][1]:.4f} to {line.points[-1][1]:.4f}" for line in curves)
    plot = lines(curves, "step", axis)
    return Panel(title, plot, f"{title}: {ends}", models.numbers(("arm", "step", "loss"), rows, _number))


def _checkpoints(facts: ComparisonFacts) -> DataTable:
    names = [name for name in facts.metrics if any(metric == name for _, _, metric in facts.scores.checkpoints)]
    places = sorted({(model, step) for model, step, _ in facts.scores.checkpoints})
    rows = []
    for model, step in places:
        cells = [
            score_cell(score, metric_of(name).digits)
            if (score := facts.scores.checkpoints.get((model, step, name))) is not None
            else Cell("", tone="muted")
            for name in names
        ]
        rows.append((Cell(model, tone="strong"), Cell(str(step), number=True), *cells))
    caption = "Checkpoints of one run on the final set, which chose none of them."
    return DataTable(caption, ("arm", "step", *(metric_of(name).short for name in names)), tuple(rows))


def _photos(facts: ComparisonFacts) -> ReportBlock:
    name = main_metric(facts)
    points: dict[str, list[tuple[int, Score, str]]] = {}
    for arm in facts.arms:
        score = facts.score(arm.name, name)
        if isinstance(score, Score) and isinstance(arm.photos, int):
            points.setdefault(arm.method, []).append((arm.photos, score, arm.name))
    several = {method: sorted(found, key=lambda point: point[0]) for method, found in points.items()}
    several = {method: found for method, found in several.items() if len({count for count, _, _ in found}) > 1}
    if not points:
        score = facts.score(facts.arms[0].name, name)
        why = score.reason if isinstance(score, Absent) else "the runs' lists of photos are not here"
        return Paragraph(f"Quality against the number of photos is not measured: {why}.", tone="muted")
    if not several:
        counts = sorted({arm.photos for arm in facts.arms if isinstance(arm.photos, int)})
        known = f"every arm was trained on {counts[0]} photos" if len(counts) == 1 else "no method had two photo counts"
        return Paragraph(f"Quality against the number of photos is not measured: {known}.", tone="muted")
    metric = metric_of(name)
    curves = [
        PlotLine(
            method,
            style(place),
            tuple((count, score.value) for count, score, _ in found),
            tuple(score.bounded for _, score, _ in found),
        )
        for place, (method, found) in enumerate(several.items())
    ]
    rows = [(arm, n, s.value, s.low, s.high) for found in several.values() for n, s, arm in found]
    said = "; ".join(
        f"{method}: " + ", ".join(f"{count} photos {score_text(score)}" for count, score, _ in found)
        for method, found in several.items()
    )
    panel = Panel(
        f"{metric.title} against photos",
        lines(curves, "training photos", f"{metric.short}, {metric.better} is better"),
        said,
        models.numbers(("arm", "photos", "value", "low", "high"), rows, _number),
    )
    return Panels("Quality against the number of photos.", (panel,))


def _all(facts: ComparisonFacts) -> list[tuple[ArmFacts, Curves]]:
    return [(arm, curve) for arm in facts.arms for curve in arm.curves]


def _label(arm: ArmFacts, curve: Curves) -> str:
    return f"{arm.name} ({curve.label})" if curve.label else arm.name


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
