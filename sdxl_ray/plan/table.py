"""A plan as people read it: plain lines and aligned tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdxl_ray.display.table import Column, Table
from sdxl_ray.display.units import bytes_text, count_text, file_size_text, seconds_text

if TYPE_CHECKING:
    from sdxl_ray.plan import Plan

PARTS = ("weights", "optimizer", "ema", "gradients", "activations", "workspace", "encoders", "offloaded", "process")


def text(plan: Plan) -> str:
    """The whole plan, as printed by `sdxl-ray plan`."""
    blocks = [_head(plan), _layouts(plan), _phases(plan), _time(plan), _saving(plan), f"advice: {plan.advice}"]
    notes = "\n".join(f"assumed: {note}" for note in plan.assumptions)
    return "\n\n".join([*blocks, notes])


def _head(plan: Plan) -> str:
    s = plan.setting
    sizes, device = s.sizes, s.device
    unet = s.profile.components["unet"].parameters
    limit = "" if device.kind == "cpu" else f", {bytes_text(device.memory_bytes)} each"
    lines = [
        f"{s.recipe.base.id} at {s.resolution} px on {s.workers} x {device.name}{limit}, {s.precision}",
        f"trains {count_text(sizes.trained)} of {count_text(sizes.whole)} parameters"
        f" (the UNet has {count_text(unet)}, {unet / sizes.trained:,.1f} times what trains)",
        f"artifact: {file_size_text(s.artifact_bytes)} in {s.artifact_dtype}"
        f" ({file_size_text(s.artifact_width * sizes.trained)} of it trained)",
        f"batch: {s.global_batch} samples a step = {s.workers} workers x {s.accumulation} forwards x {s.micro_batch}",
    ]
    return "\n".join(lines)


def _layouts(plan: Plan) -> str:
    columns = [
        Column("chosen", "", align="left"),
        Column("layout", "per GPU" if plan.setting.device.kind == "gpu" else "per worker", align="left"),
        *(Column(part, part, bytes_text) for part in ("weights", "gradients", "optimizer", "activations", "workspace")),
        Column("other", "other", bytes_text),
        Column("training", "training", bytes_text),
        Column("host", "CPU memory", bytes_text),
        Column("needed", "in all", bytes_text),
        Column("fits", "fits", lambda fits: "yes" if fits else "no", align="left"),
    ]
    return Table(columns, [{**row, "chosen": ">" if row["chosen"] else ""} for row in plan.rows()]).text()


def _phases(plan: Plan) -> str:
    rows: list[dict[str, Any]] = []
    memory = plan.memory
    for phase in memory.phases:
        rows.append({"phase": phase.name, **{p: phase.parts.get(p) or None for p in PARTS}, "total": phase.total})
    shown = [part for part in PARTS if any(row[part] for row in rows)]
    columns = [Column("phase", "phase", align="left"), *(Column(part, part, bytes_text) for part in shown)]
    table = Table([*columns, Column("total", "total", bytes_text)], rows).text()
    tail = f"peak in {memory.peak.name}: {bytes_text(memory.allocated_bytes)} allocated"
    if memory.overhead_bytes:
        tail += f" + {bytes_text(memory.overhead_bytes)} context and fragmentation (estimated)"
    return f"{table}\n{tail}"


def _time(plan: Plan) -> str:
    d = plan.duration
    spans = ", ".join(f"{name} {_span(span)}" for name, span in d.phases_s.items())
    lines = [
        f"time: {_span(d.total_s)} ({spans})",
        f"step: {d.step_flop / 1e12:,.4g} TFLOP, at least {seconds_text(d.floor_s)}, expected {_span(d.step_s)}",
    ]
    if d.cost is not None:
        lines.append(f"cost: {d.cost[0]:,.2f} to {d.cost[1]:,.2f} at {plan.price_per_hour:g} an hour and GPU")
    return "\n".join(lines)


def _saving(plan: Plan) -> str:
    saved = plan.saving
    each = file_size_text(saved.checkpoint_bytes)
    where = "the worker" if plan.setting.workers == 1 else "each worker"
    return (
        f"disk: {file_size_text(saved.disk_bytes)} ({saved.checkpoints} checkpoints of {each} and the artifact);"
        f" a checkpoint takes {bytes_text(saved.host_bytes)} of CPU memory on {where} while it is written, and"
        f" {seconds_text(saved.hash_seconds)} to hash"
    )


def _span(span: tuple[float, float]) -> str:
    low, high = (seconds_text(value) for value in span)
    return low if low == high else f"{low} to {high}"
