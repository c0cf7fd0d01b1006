"""Accuracy: every model on every metric with its interval, the differences to the base, and how it was scored."""

from __future__ import annotations

from itertools import combinations

from sdxl_ray.report.document import (
    Cell,
    DataTable,
    Panel,
    Panels,
    Paragraph,
    ReportBlock,
    ReportSection,
    Tone,
    absent,
    cell,
    interval_text,
    joined,
    score_cell,
    score_text,
)
from sdxl_ray.report.facts import ComparisonFacts, main_metric
from sdxl_ray.report.metrics import BASE, REFERENCES, Absent, Gain, Metric, Score, metric_of
from sdxl_ray.report.plots import intervals
from sdxl_ray.report.sections import models

_ARROWS = {"higher": "higher is better", "lower": "lower is better"}
_UNPAIRED = "from the two intervals as if independent, which is wider: no paired difference is recorded"
_NOTHING = Cell("", tone="muted")
#: Told subject by subject, beside what decides.
_BY_SUBJECT = ("clip_t", "pres")
_TONES: dict[str, Tone] = {"better": "good", "worse": "bad", "even": "", "unknown": "muted"}


def section(facts: ComparisonFacts) -> ReportSection:
    metrics = [metric_of(name) for name in facts.metrics]
    title, lead = "Accuracy", _lead(facts)
    if not metrics:
        nothing = Paragraph("Not measured: no final scores are recorded.", tone="muted")
        return ReportSection("accuracy", title, lead, (nothing,))
    shown = [metric_of(name) for name in facts.shown]
    blocks: list[ReportBlock] = [_scores(facts, shown), _gains(facts, shown)]
    if len(facts.arms) > 1:
        blocks.append(_leads(facts, shown))
    panels = tuple(_panel(facts, metric) for metric in metrics)
    blocks.append(Panels("Each metric with its intervals. Dashed: the reference rows.", panels))
    if len(facts.subjects) > 1:
        blocks += [_subjects(facts, metric) for metric in metrics if metric.name in (main_metric(facts), *_BY_SUBJECT)]
    blocks.append(_method(facts, metrics))
    return ReportSection("accuracy", title, lead, tuple(blocks))


def _lead(facts: ComparisonFacts) -> str:
    """What the final scores rest on, and what of that has chosen something."""
    chose = [arm.name for arm in facts.arms if any(curve.kept is not None for curve in arm.curves)]
    if not chose:
        return "Final scores: prompts, seeds and photos that chose neither a checkpoint nor a setting."
    return (
        "Final scores: prompts and seeds that chose neither a checkpoint nor a setting. The held-out photos are those "
        f"that, under other prompts and seeds, chose the checkpoint of {joined(chose)}."
    )


def _scores(facts: ComparisonFacts, metrics: list[Metric]) -> DataTable:
    references = [name for name in REFERENCES if any(name in models.references(facts, m.name) for m in metrics)]
    rows = []
    for metric in metrics:
        known = models.references(facts, metric.name)
        cells = [_score(facts, model, metric) for model in models.names(facts)]
        cells += [score_cell(known[n], metric.digits, "muted") if n in known else _NOTHING for n in references]
        rows.append((_head(metric), *cells))
    over = f", over {len(facts.subjects)} subjects" if len(facts.subjects) > 1 else ""
    titles = ("metric", *models.names(facts), *(REFERENCES[name] for name in references))
    return DataTable(f"Scores with their bootstrap intervals{over}.", titles, tuple(rows))


def _score(facts: ComparisonFacts, model: str, metric: Metric) -> Cell:
    score = facts.score(model, metric.name)
    if model == BASE and metric.from_base and isinstance(score, Absent):
        return Cell("0", note="by definition: this is the distance to the base", number=True)
    return score_cell(score, metric.digits)


def _gains(facts: ComparisonFacts, metrics: list[Metric]) -> DataTable:
    rows = tuple((_head(metric), *(_gain(facts, arm.name, metric) for arm in facts.arms)) for metric in metrics)
    caption = (
        "Difference to the base; called better or worse, in its metric's sense, where its interval leaves zero out."
    )
    return DataTable(caption, ("metric", *(arm.name for arm in facts.arms)), rows)


def _leads(facts: ComparisonFacts, metrics: list[Metric]) -> DataTable:
    """Every two arms, side by side."""
    pairs = list(combinations([arm.name for arm in facts.arms], 2))
    rows = tuple(
        (Cell(f"{second} less {first}", tone="strong"),
         *(_difference(facts.lead(second, first, metric.name), metric) for metric in metrics))
        for first, second in pairs
    )  # fmt: skip
    caption = "Arm against arm; better or worse is said of the arm that is named first."
    return DataTable(caption, ("arms", *(metric.short for metric in metrics)), rows)


def _gain(facts: ComparisonFacts, model: str, metric: Metric) -> Cell:
    return _difference(facts.gain(model, metric.name), metric)


def _difference(gain: Gain | Absent, metric: Metric) -> Cell:
    if isinstance(gain, Absent):
        return absent(gain.reason)
    side = gain.direction(metric.better)
    text = f"{gain.value:+.{metric.digits}f}" + (f" {side}" if side in ("better", "worse") else "")
    interval = interval_text(gain, metric.digits, signed=True)
    return Cell(text, "" if gain.paired else _UNPAIRED, _TONES[side], number=True, small=interval)


def _head(metric: Metric) -> Cell:
    return Cell(metric.title, tone="strong", small=_ARROWS[metric.better])


def _panel(facts: ComparisonFacts, metric: Metric) -> Panel:
    how = models.styles(facts)
    found = {name: facts.score(name, metric.name) for name in models.names(facts)}
    rows = [(name, score, how[name]) for name, score in found.items() if isinstance(score, Score)]
    marks = {name: score.value for name, score in models.references(facts, metric.name).items()}
    said = ", ".join(f"{name} {score_text(score, metric.digits)}" for name, score, _ in rows)
    table = models.numbers(
        ("model", "value", "low", "high", "n"),
        [(name, score.value, score.low, score.high, score.n) for name, score, _ in rows],
        lambda value: f"{value:.{metric.digits}f}" if isinstance(value, float) else str(value),
    )
    title = f"{metric.title}"
    return Panel(title, intervals(rows, marks, _ARROWS[metric.better]), f"{metric.title}: {said}", table)


def _subjects(facts: ComparisonFacts, metric: Metric) -> DataTable:
    rows = tuple(
        (
            Cell(subject, tone="strong"),
            *(score_cell(facts.score(model, metric.name, subject), metric.digits) for model in models.names(facts)),
        )
        for subject in facts.subjects
    )
    return DataTable(f"{metric.title} by subject.", ("subject", *models.names(facts)), rows)


def _method(facts: ComparisonFacts, metrics: list[Metric]) -> DataTable:
    rows = []
    for metric in metrics:
        score = next(
            (s for name in [*models.names(facts)[1:], BASE] if isinstance(s := facts.score(name, metric.name), Score)),
            None,
        )
        assert score is not None  # a metric is listed because a model has a score of it
        missing = Absent("the evaluator did not record it")
        own = not score.encoder and metric.name == "prior_loss"
        rows.append(
            (
                Cell(metric.title, tone="strong"),
                Cell(f"{metric.meaning}; {_ARROWS[metric.better]}"),
                Cell("the model itself") if own else cell(score.encoder or missing),
                Cell("fixed noise and timesteps") if own else cell(score.preprocessing or missing),
                cell(score.n if score.n is not None else missing),
            )
        )
    return DataTable("How it was scored.", ("metric", "what it is", "encoder", "preprocessing", "n"), tuple(rows), True)
