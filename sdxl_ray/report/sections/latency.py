"""Latency under load: how long users of an endpoint wait for the base and for every arm, from the table `requests`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdxl_ray.metrics.latency import (
    ENOUGH_FOR_P99,
    Condition,
    Estimate,
    Highest,
    Summary,
    highest_rates,
    may_miss,
    percentile,
    ratio,
    summaries,
)
from sdxl_ray.report.document import Cell, DataTable, Panel, Panels, Paragraph, ReportBlock, ReportSection, Tone, joined
from sdxl_ray.report.facts import ComparisonFacts
from sdxl_ray.report.metrics import BASE
from sdxl_ray.report.plots import ArmStyle, PlotLine, lines, style
from sdxl_ray.report.sections import models

_POINTS = 60  # of a curve: more than a phone can show
_FEW = "no interval: too few requests to show this percentile"
_SMALL = f"fewer than {ENOUGH_FOR_P99} answered requests: too few to show a p99"
_ALONE = "Load was put on one arm after another, so none slowed another."
_DEPLOYMENTS = {
    "isolated": "Every arm had replicas of its own, with equal resources.",
    "shared": f"The arms shared replicas, on which a LoRA is computed beside the base's weights. {_ALONE}",
    "partly shared": "Arms of the base's weights shared replicas, on which a LoRA is computed beside them; an arm with "
    f"weights of its own had replicas of its own, with equal resources. {_ALONE}",
}


def section(facts: ComparisonFacts) -> ReportSection:
    found = _ordered(facts)
    lead = "What a user of an endpoint waits, base and tuned under the same arrivals."
    if not found:
        why = Paragraph("Latency under load is not measured: no load test was run on these models.", tone="muted")
        return ReportSection("latency", "Latency under load", lead, (why,))
    blocks: list[ReportBlock] = [_how(facts, found), _table(found)]
    against = _against_base(facts, found)
    if against is not None:
        blocks.append(against)
    how = _styles(facts, found)
    blocks.append(_curves(found, how))
    rates = _against_rate(found, how)
    if rates is not None:
        blocks.append(rates)
    best = highest_rates(facts.requests)
    if best:
        blocks.append(_highest(best))
    blocks += [_parts(found), _same_weights(facts, found)]
    return ReportSection("latency", "Latency under load", lead, tuple(blocks))


def _ordered(facts: ComparisonFacts) -> list[Summary]:
    """By condition, then in the report's order of models."""
    order = {name: place for place, name in enumerate(models.names(facts))}
    found = summaries(facts.requests)
    return sorted(found, key=lambda s: (s.condition.scenario, s.condition.rate, order.get(s.arm, len(order)), s.arm))


def _styles(facts: ComparisonFacts, found: Sequence[Summary]) -> dict[str, ArmStyle]:
    known = models.styles(facts)
    more = [name for name in dict.fromkeys(summary.arm for summary in found) if name not in known]
    return known | {name: style(len(known) - 1 + place) for place, name in enumerate(more)}


def _how(facts: ComparisonFacts, found: Sequence[Summary]) -> Paragraph:
    words = [_DEPLOYMENTS.get(name, name) for name in sorted({summary.deployment for summary in found})]
    steps = sorted({row["steps"] for row in facts.requests})
    rounds = 1 + max(row["round"] for row in facts.requests if row["phase"] == "run")
    late = max((s.late_ms for s in found if s.condition.scenario != "offline"), default=0.0)
    return Paragraph(
        f"MLPerf LoadGen decided when each request was sent; its latency counts from that time to the last byte, so a "
        f"wait cannot hide. Arms took turns in {rounds} round{'s' if rounds > 1 else ''}, every other one backwards, "
        f"with the same prompts, seeds and arrivals; {joined([str(count) for count in steps])} denoising steps. "
        f"{' '.join(words)} The load generator, a process of its own, took at most "
        f"{max(s.generator_cpu for s in found):.0%} of one core and sent 99% of requests within {late:.1f} ms."
    )


def _table(found: Sequence[Summary]) -> DataTable:
    rows = tuple(
        (
            *_names(s),
            Cell(f"{s.answered} of {s.sent}", number=True),
            *(_percentile(s, percent) for percent in (50, 90, 99)),
            Cell(f"{s.throughput:.2f}", number=True),
            Cell(f"{s.shed / s.sent:.1%}", number=True),
            Cell(str(s.failed), number=True, tone="bad" if s.failed else ""),
        )
        for s in found
    )
    titles = ("arm", "load", "answered", "p50 ms", "p90 ms", "p99 ms", "images/s", "shed", "failed")
    caption = (
        "Latency by arm and load. In brackets: 95% intervals of order statistics; open where a sample of this size has "
        "no such end."
    )
    return DataTable(caption, titles, rows)


def _parts(found: Sequence[Summary]) -> DataTable:
    names = ("queue_ms", "text_ms", "denoise_ms", "decode_ms", "server_ms", "batch")
    rows = tuple((*_names(s), *(_part(s, name) for name in names)) for s in found)
    titles = ("arm", "load", "waiting ms", "text ms", "denoising ms", "decoding ms", "in all ms", "batch")
    return DataTable("Where the time went, as the server tells: medians, and the mean batch.", titles, rows)


def _names(summary: Summary) -> tuple[Cell, Cell]:
    return Cell(summary.arm, tone="strong"), Cell(summary.condition.words)


def _percentile(summary: Summary, percent: int) -> Cell:
    estimate = summary.percentiles.get(percent)
    if estimate is None:
        return Cell("none", tone="muted", note="none: no request was answered")
    few = percent == 99 and estimate.n < ENOUGH_FOR_P99
    small = _interval(estimate, 0) + (f" n={estimate.n}" if percent == 99 else "")
    return Cell(f"{estimate.value:.0f}", number=True, small=small, note=_SMALL if few else "")


def _interval(estimate: Estimate, digits: int) -> str:
    ends = ["open" if end is None else f"{end:.{digits}f}" for end in (estimate.low, estimate.high)]
    return f"[{', '.join(ends)}]"


def _part(summary: Summary, name: str) -> Cell:
    value = summary.parts[name]
    if value is None:
        return Cell("not reported", tone="muted", note="the server did not report it")
    return Cell(f"{value:.{1 if value < 10 else 0}f}", number=True)


def _against_base(facts: ComparisonFacts, found: Sequence[Summary]) -> DataTable | None:
    rows = []
    for summary in found:
        if summary.arm == BASE:
            continue
        compared = [ratio(facts.requests, summary.arm, BASE, summary.condition, percent) for percent in (50, 90, 99)]
        if compared[0] is not None:
            cells = (_times(estimate) for estimate in compared)
            pairs = Cell(str(compared[0].n), number=True)
            rows.append((*_names(summary), pairs, *cells))
    if not rows:
        return None
    caption = (
        "Tuned against base, of the requests that both answered; 1.00 is no difference. In brackets: 95% intervals "
        "from blocks of neighbouring requests drawn again for both together, where there are enough of them to show "
        f"the percentile ({ENOUGH_FOR_P99} for p99). Coloured where they leave 1 out."
    )
    return DataTable(caption, ("arm", "load", "pairs", "p50 x base", "p90 x base", "p99 x base"), tuple(rows))


def _times(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell("none", tone="muted")
    if estimate.low is None or estimate.high is None:
        return Cell(f"{estimate.value:.2f}", number=True, small="no interval", note=_FEW)
    tone: Tone = ""
    if not estimate.low <= 1 <= estimate.high:
        tone = "good" if estimate.high < 1 else "bad"
    return Cell(f"{estimate.value:.2f}", number=True, tone=tone, small=_interval(estimate, 2))


def _curves(found: Sequence[Summary], how: dict[str, ArmStyle]) -> Panels:
    conditions = dict.fromkeys(summary.condition for summary in found)
    panels = tuple(_curve([s for s in found if s.condition == c and len(s.latencies)], c, how) for c in conditions)
    return Panels("How many requests were answered within a time.", tuple(panel for panel in panels if panel))


def _curve(found: Sequence[Summary], condition: Condition, how: dict[str, ArmStyle]) -> Panel | None:
    if not found:
        return None
    curves = []
    for summary in found:
        count = min(_POINTS, len(summary.latencies))
        shares = np.linspace(1 / count, 1, count)
        points = tuple((percentile(summary.latencies, 100 * share) / 1000, 100 * share) for share in shares)
        curves.append(PlotLine(summary.arm, how[summary.arm], points, marked=False))
    plot = lines(curves, "seconds", f"% of requests answered, {condition.words}")
    said = ", ".join(f"{s.arm} half within {s.percentiles[50].value:.0f} ms" for s in found)
    rows = [(s.arm, *(s.percentiles[p].value for p in (50, 90, 99))) for s in found]
    table = models.numbers(("arm", "p50 ms", "p90 ms", "p99 ms"), rows, "{:.0f}".format)
    return Panel(f"Latency, {condition.words}", plot, f"Cumulative latency under {condition.words}: {said}", table)


def _against_rate(found: Sequence[Summary], how: dict[str, ArmStyle]) -> Panels | None:
    server = [s for s in found if s.condition.rate and s.percentiles]
    if len({s.condition.rate for s in server}) < 2:
        return None
    panels = tuple(_rates(server, percent, how) for percent in (50, 99))
    return Panels("Latency against the rate of arrivals.", panels)


def _rates(found: Sequence[Summary], percent: int, how: dict[str, ArmStyle]) -> Panel:
    curves, rows = [], []
    for arm in dict.fromkeys(s.arm for s in found):
        points = [(s.condition.rate, s.percentiles[percent]) for s in found if s.arm == arm]
        spans = tuple((e.low, e.high) if e.low is not None and e.high is not None else None for _, e in points)
        curves.append(PlotLine(arm, how[arm], tuple((rate, e.value) for rate, e in points), spans))
        rows += [(arm, rate, e.value, e.low, e.high) for rate, e in points]
    table = models.numbers(("arm", "queries/s", "ms", "low", "high"), rows, "{:g}".format)
    said = "; ".join(
        f"{line.name}: " + ", ".join(f"{value:.0f} ms at {rate:g}/s" for rate, value in line.points) for line in curves
    )
    plot = lines(curves, "queries/s", f"p{percent} of latency, ms")
    return Panel(f"p{percent} against rate", plot, f"p{percent} of latency against rate: {said}", table)


def _highest(found: Sequence[Highest]) -> DataTable:
    rows = tuple(
        (
            Cell(best.arm, tone="strong"),
            Cell(f"{best.bound_ms:g}", number=True),
            Cell("none that was tried", tone="muted") if best.words is None else Cell(best.words, number=True),
            Cell(str(best.probes), number=True),
            Cell(str(best.queries), number=True, note=_SMALL if best.queries < ENOUGH_FOR_P99 else ""),
        )
        for best in found
    )
    titles = ("arm", "p99 at most, ms", "queries/s", "rates tried", "queries each")
    most = max(best.queries for best in found)
    caption = (
        "The highest rate tried that was answered whole with p99 within the bound; >= where every rate tried was. This "
        f"p99 is of the sample (nearest rank): of {most} queries {may_miss(most)} may take longer."
    )
    return DataTable(caption, titles, rows)


def _same_weights(facts: ComparisonFacts, found: Sequence[Summary]) -> Paragraph:
    """Whether what was loaded is what was scored, by the artifacts' hashes."""
    served = {summary.arm: summary.artifacts for summary in found}
    scored = {arm.name: set(arm.hashes) for arm in facts.arms} | {BASE: {""}}
    mixed = {summary.arm for summary in found if summary.adapters}  # no image of these was scored
    known = [name for name in served if name in scored and served[name] and name not in mixed]
    other = [name for name in known if not scored[name].issuperset(served[name])]
    if other:
        return Paragraph(f"Another artifact than the scored one was put under load for {joined(other)}.", tone="bad")
    if not known:
        return Paragraph("The server did not say which artifact answered.", tone="muted")
    return Paragraph(f"The artifacts that answered are those of the quality table, by their hashes: {joined(known)}.")
