"""Results of arms as one table a set, each row beside the plain loop of the same work and beside the plan."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from arms import GRID, Arm, recipe

from sdxl_ray.display.table import Column, Table
from sdxl_ray.display.units import bytes_text, count_text
from sdxl_ray.plan import DEVICES, Device, Plan, device


def merged(passes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result of several passes of an arm: medians; the first failure when no pass went well."""
    good = [found for found in passes if found["status"] == "ok"]
    if not good:
        return passes[0]
    # The peak of the pass that needed most: a plan must hold for it.
    rates = [found["samples_per_s"] for found in good]
    return {
        **good[0],
        "samples_per_s": statistics.median(rates),
        "step_s": statistics.median(found["step_s"] for found in good),
        "slowest": min(rates),
        "fastest": max(rates),
        "start_s": statistics.median(found["start_s"] for found in good),
        "peak_bytes": max(found["peak_bytes"] for found in good),
        "finite": all(found["finite"] for found in good),
        "passes": len(good),
        "status": "ok" if len(good) == len(passes) else f"{len(passes) - len(good)} of {len(passes)} passes failed",
    }


def rows(arms: Sequence[Arm], found: dict[str, dict[str, Any]], on: Device) -> list[dict[str, Any]]:
    """A row per arm, ready for a table. `on` is the device that plan and floor are made for."""
    made = []
    for arm in arms:
        result = found[arm.name]
        row: dict[str, Any] = {"name": arm.name, "tuning": arm.tuning, "batch": arm.batch, "arm": arm.label}
        row |= {"caches": "on" if arm.cached else "off", "checkpointed": "yes" if arm.checkpointing else "no"}
        row |= {"compiled": "yes" if arm.compiled else "no", **result}
        row |= {"note": "" if result["status"] == "ok" else result["status"]}
        if "samples_per_s" in result:
            row |= _beside(arm, found, on)
        made.append(row)
    return made


def _beside(arm: Arm, found: dict[str, dict[str, Any]], on: Device) -> dict[str, Any]:
    result = found[arm.name]
    row: dict[str, Any] = {"finite": "yes" if result["finite"] else "NaN"}
    home = arm.name.rpartition("/")[0]
    plain = found.get(f"{home}/plain", {})
    if "samples_per_s" in plain:
        row["ratio"] = result["samples_per_s"] / plain["samples_per_s"]
    # The floor knows no recomputation and no encoding: it is what the training itself costs at full rates.
    bare = replace(arm, checkpointing=False, cached=True)
    row["floor_share"] = Plan.of(recipe(bare), on).duration.floor_s / result["step_s"]
    if arm.how != "plain":
        memory = Plan.of(recipe(arm), on, workers=arm.workers).memory
        # A GPU's peak is counted from the first step on, a process's from its start.
        row["plan_bytes"] = memory.training_bytes if on.kind == "gpu" else memory.allocated_bytes
        row["plan_ratio"] = row["plan_bytes"] / result["peak_bytes"]
    return row


def table(made: Sequence[dict[str, Any]]) -> Table:
    """The rows of one set."""
    on_grid = made[0]["name"].startswith(f"{GRID}/")
    columns = [Column("tuning", "tuning"), Column("arm", "trained by", align="left")]
    if on_grid:
        columns += [
            Column("batch", "batch"),
            Column("checkpointed", "checkpointed"),
            Column("compiled", "compiled"),
            Column("samples_per_s", "images/s", _three),
            Column("ratio", "x plain", _two),
            Column("floor_share", "of the floor", lambda share: f"{share:.1%}"),
        ]
    else:
        columns += [
            Column("caches", "caches"),
            Column("samples_per_s", "samples/s", _three),
            Column("slowest", "slowest", _three),
            Column("fastest", "fastest", _three),
            Column("ratio", "x plain", _two),
            Column("start_s", "start-up s", lambda seconds: f"{seconds:.0f}"),
        ]
    columns += [
        Column("peak_bytes", "peak memory", bytes_text),
        Column("plan_bytes", "plan", bytes_text),
        Column("plan_ratio", "plan / peak", _two),
        Column("trainable", "trained", count_text),
        Column("finite", "finite", align="left"),
        Column("note", "note", align="left"),
    ]
    there = [column for column in columns if any(row.get(column.key) not in (None, "") for row in made)]
    return Table(there, made)


def device_named(name: str) -> Device:
    """The plan's device for the name that a driver gives (`NVIDIA H100 80GB HBM3`); the CPU for anything else."""
    plain = name.lower().replace(" ", "")
    fits = [key for key in DEVICES if all(word in plain for word in key.split("-"))]
    return device(max(fits, key=len) if fits and plain != "cpu" else "cpu")


def _two(number: float) -> str:
    return f"{number:.2f}"


def _three(number: float) -> str:
    """Three figures."""
    return f"{number:.{0 if number >= 100 else 1 if number >= 10 else 2 if number >= 1 else 3}f}"
