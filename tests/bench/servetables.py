"""What the serving benchmark found, as tables, and beside the goals that it was built for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdxl_ray.display.table import Column, Table
from sdxl_ray.metrics.latency import ENOUGH_FOR_P99, Condition, Estimate, Summary, ratio, summaries

Row = dict[str, Any]

LABELS = {
    "pipeline": "bare pipeline, in-process",
    "engine": "our engine, in-process",
    "recipe": "@serve.batch around a pipeline, HTTP",
    "base": "ours, HTTP: base",
    "lora": "ours, HTTP: LoRA, unfused",
    "fused": "ours, HTTP: LoRA, fused",
    "mixed": "ours, HTTP: base and LoRA in one batch",
}
_COLUMNS = (
    Column("label", "system"),
    Column("p50_ms", "p50 ms, one at a time", "{:.0f}".format),
    Column("interval", "95 %", align="right"),
    Column("over_ms", "over the pipeline, ms", "{:+.0f}".format),
    Column("rate", "images/s, many", "{:.2f}".format),
    Column("x_engine", "x engine", "{:.2f}".format),
)
_MIXED = (
    Column("label", "system"),
    Column("n", "answered"),
    Column("p50", "p50 ms", align="right"),
    Column("p90", "p90 ms", align="right"),
    Column("p99", "p99 ms", align="right"),
    Column("rate", "images/s", "{:.2f}".format),
    Column("shed", "shed"),
)
_SHAPES = (
    Column("label", "what"),
    Column("eager", "eager diffusers", "{:.4g}".format),
    Column("ours", "ours", "{:.4g}".format),
    Column("ratio", "ratio", "{:.2f}".format),
    Column("goal", "goal", align="left"),
)


def embedded_rows(found: Row) -> tuple[list[Row], list[Row]]:
    """Rows of the systems one by one, and of mixed step counts under load."""
    numbers, made = found["numbers"], []
    of = {(s.arm, s.condition.scenario): s for s in summaries(found["requests"])}
    for name, label in LABELS.items():
        row: Row = {"name": name, "label": label, "p50_ms": numbers.get(f"{name}_ms"), "interval": None}
        row["rate"] = numbers.get(f"{name}_rate")
        if (name, "singlestream") in of:
            middle = of[name, "singlestream"].percentiles[50]
            row |= {"p50_ms": middle.value, "interval": _ends(middle)}
        if (name, "offline") in of:
            row["rate"] = of[name, "offline"].throughput
        row["over_ms"] = None if row["p50_ms"] is None else row["p50_ms"] - numbers["pipeline_ms"]
        row["x_engine"] = row["rate"] / numbers["engine_rate"]
        made.append(row)
    mixed = [_mixed(of[name, "server"]) for name in ("recipe", "base") if (name, "server") in of]
    return made, mixed


def _mixed(summary: Summary) -> Row:
    percentiles = {f"p{p}": f"{e.value:.0f} {_ends(e)}" for p, e in summary.percentiles.items()}
    few = "" if summary.answered >= ENOUGH_FOR_P99 else "*"
    percentiles["p99"] = f"{percentiles.get('p99', '-')}{few}"
    return {
        "name": summary.arm,
        "label": LABELS[summary.arm],
        "n": summary.answered,
        "p50": None,
        "p90": None,
        **percentiles,
        "rate": summary.throughput,
        "shed": summary.shed + summary.failed,
    }


def _ends(estimate: Estimate) -> str:
    low, high = ("open" if end is None else f"{end:.0f}" for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def goals(found: Row) -> list[str]:
    """Every goal of the embedded base in one line: what was got, and what was wanted."""
    rows = {row["name"]: row for row in embedded_rows(found)[0]}
    numbers, requests = found["numbers"], found["requests"]
    base, fused, unfused = (rows[name] for name in ("base", "fused", "lora"))
    one, many = Condition("singlestream", 0.0), Condition("offline", 0.0)
    lines = [
        f"over the engine in-process, p50: {base['p50_ms'] - numbers['engine_ms']:+.1f} ms; over the pipeline: "
        f"{base['over_ms']:+.1f} ms (goal <= 10)",
        f"throughput: {base['x_engine']:.2f} x the engine in-process, {base['rate'] / numbers['pipeline_rate']:.2f} x "
        f"the pipeline in batches (goal >= 0.97), {base['rate'] / rows['recipe']['rate']:.2f} x the recipe",
    ]
    rate = Condition("server", found["mixed_rate"])
    for percent in (50, 99):
        times = ratio(requests, "base", "recipe", rate, percent)
        if times is not None:
            goal = " (goal <= 0.60)" if percent == 99 else ""
            lines.append(
                f"mixed step counts at {rate.rate:g} images/s: p{percent} is {_times(times)} x the recipe's{goal}"
            )
    for name, row, goal in (("fused", fused, "1.01"), ("lora", unfused, "1.05")):
        times = ratio(requests, name, "base", one, 50)
        if times is not None:
            lines.append(
                f"{row['label']}: p50 {_times(times)} x base (goal <= {goal}), images take "
                f"{base['rate'] / row['rate']:.2f} x as long where there are many"
            )
    mixed = ratio(requests, "mixed", "base", many, 50)
    if mixed is not None:
        lines.append(
            f"base and LoRA in one batch: p50 of many at once {_times(mixed)} x base, images take "
            f"{base['rate'] / rows['mixed']['rate']:.2f} x as long (goal <= 1.10)"
        )
    return lines


def _times(estimate: Estimate) -> str:
    ends = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{ends}"


def embedded_text(found: Row) -> str:
    """Both tables and the goals."""
    systems, mixed = embedded_rows(found)
    parts = [Table(_COLUMNS, systems).text()]
    if mixed:
        parts.append(f"Mixed step counts, Poisson arrivals:\n{Table(_MIXED, mixed).text()}")
    parts.append("\n".join(goals(found)))
    return "\n\n".join(parts)


def shapes_text(rows: Sequence[Row]) -> str:
    """The rows of true shapes."""
    return Table(_SHAPES, rows).text()
