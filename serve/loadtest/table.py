"""What a load test found, for a terminal and for scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sdxl_ray.display.table import Column, Table
from sdxl_ray.io.rows import Row
from sdxl_ray.metrics.latency import ENOUGH_FOR_P99, Estimate, Summary, highest_rates, may_miss, summaries

COLUMNS = (
    Column("arm", "arm"),
    Column("condition", "load"),
    Column("answered", "answered"),
    Column("p50", "p50 ms", align="right"),
    Column("p90", "p90 ms", align="right"),
    Column("p99", "p99 ms (n)", align="right"),
    Column("throughput", "images/s", "{:.2f}".format),
    Column("shed", "shed", "{:.1%}".format),
    Column("failed", "failed"),
    Column("queue_ms", "queue ms", "{:.0f}".format),
    Column("batch", "batch", "{:.1f}".format),
    Column("artifact", "artifact", align="left"),
)


def describe(rows: Sequence[Row]) -> str:
    """A table, and what has to be said about it."""
    found = summaries(rows)
    lines = [Table(COLUMNS, [_row(summary) for summary in found]).text(), ""]
    for best in highest_rates(rows):
        what = f"{best.words} queries/s" if best.words else "no rate that was tried"
        missed = f"{may_miss(best.queries)} of {best.queries} may take longer"
        lines.append(f"{best.arm}: p99 of the sample ({missed}) stays at or under {best.bound_ms:g} ms up to {what}.")
    if any(summary.answered < ENOUGH_FOR_P99 for summary in found):
        lines.append(f"* a p99 of fewer than {ENOUGH_FOR_P99} answered requests shows little.")
    for summary in found:
        if summary.refused:
            lines.append(
                f"{summary.arm}, {summary.condition.words}: the server was full {summary.refused} times, and was asked "
                "again."
            )
    shares = ", ".join(sorted({summary.deployment for summary in found}))
    most = max(summary.generator_cpu for summary in found)
    late_ms = [summary.late_ms for summary in found if summary.condition.scenario != "offline"]
    late = f" and sent 99 % of requests within {max(late_ms):.1f} ms of their time" if late_ms else ""
    lines.append(
        "In brackets: 95 % intervals of order statistics. Latency counts from the intended time of sending. "
        f"Replicas: {shares}. The load generator took up to {most:.0%} of one core{late}."
    )
    return "\n".join(lines)


def plain(rows: Iterable[Row]) -> dict[str, Any]:
    """The same as plain data."""
    rows = list(rows)
    return {
        "arms": [_plain(summary) for summary in summaries(rows)],
        "highest_rates": [asdict(best) for best in highest_rates(rows)],
    }


def _row(summary: Summary) -> Row:
    percentiles = {f"p{percent}": estimate_text(estimate) for percent, estimate in summary.percentiles.items()}
    if summary.percentiles:
        percentiles["p99"] += f" ({summary.answered}{'' if summary.answered >= ENOUGH_FOR_P99 else '*'})"
    return {
        "arm": summary.arm,
        "condition": summary.condition.words,
        "answered": summary.answered,
        "p50": None,
        "p90": None,
        "p99": None,
        **percentiles,
        "throughput": summary.throughput,
        "shed": summary.shed / summary.sent,
        "failed": summary.failed,
        "queue_ms": summary.parts["queue_ms"],
        "batch": summary.parts["batch"],
        "artifact": _drawn_by(summary),
    }


def _plain(summary: Summary) -> Row:
    return {
        "arm": summary.arm,
        "scenario": summary.condition.scenario,
        "rate": summary.condition.rate,
        "sent": summary.sent,
        "answered": summary.answered,
        "shed": summary.shed,
        "failed": summary.failed,
        "latency_ms": {
            f"p{percent}": {"value": e.value, "low": e.low, "high": e.high, "n": e.n}
            for percent, e in summary.percentiles.items()
        },
        "pictures_per_s": summary.throughput,
        "server": summary.parts,
        "artifacts": list(summary.artifacts),
        "adapters": list(summary.adapters),
        "refused": summary.refused,
        "deployment": summary.deployment,
        "generator_cpu": summary.generator_cpu,
        "late_ms": summary.late_ms,
    }


def _drawn_by(summary: Summary) -> str | None:
    """`base + dog 0123456789ab`; None where the server did not say."""
    models = ", ".join(hash_[:12] or "base" for hash_ in summary.artifacts)
    adapters = [f"{name} {hash_[:12]}" for name, _, hash_ in (text.partition("=") for text in summary.adapters)]
    return " + ".join([models, *adapters]) if models else None


def estimate_text(estimate: Estimate) -> str:
    """`812 [790, 841]` milliseconds; an open end is left open."""
    low = "open" if estimate.low is None else f"{estimate.low:.0f}"
    high = "open" if estimate.high is None else f"{estimate.high:.0f}"
    return f"{estimate.value:.0f} [{low}, {high}]"
