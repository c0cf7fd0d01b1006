"""Plan: bytes, seconds and money of a run, before anything is rented; refuses what cannot fit.

    plan = Plan.of(load_recipe("lora"), "4090", images=5)
    plan.check()              # DoesNotFit names settings that fit
    print(plan.text())

Nothing here loads a framework: sizes come from a profile of the architecture that was measured on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.display.units import bytes_text
from sdxl_ray.errors import UserError
from sdxl_ray.plan import architecture, table
from sdxl_ray.plan.advice import Advice, advise
from sdxl_ray.plan.architecture import Architecture
from sdxl_ray.plan.devices import CPU, DEVICES, Device, device, memory_bytes
from sdxl_ray.plan.fitting import Remedy, remedies
from sdxl_ray.plan.memory import Memory, memory, zero_settings
from sdxl_ray.plan.saving import Saving, saving
from sdxl_ray.plan.setting import RunShape, setting
from sdxl_ray.plan.time import SLOW_HALF, Duration, duration

__all__ = ["CPU", "DEVICES", "Device", "DoesNotFit", "Plan", "Saving", "device", "memory_bytes", "zero_settings"]


class DoesNotFit(UserError):  # noqa: N818  # a statement, as it reads in `except DoesNotFit`
    """A recipe needs more than its device has; `remedies` are settings that fit."""

    def __init__(self, message: str, needed_bytes: int, limit_bytes: int, found: list[Remedy]) -> None:
        super().__init__(message)
        self.needed_bytes, self.limit_bytes, self.remedies = needed_bytes, limit_bytes, found


@dataclass(frozen=True)
class Plan:
    """One recipe on one kind of device. images: training images, None when not known yet."""

    setting: RunShape
    memory: Memory
    duration: Duration
    saving: Saving
    architecture: Architecture
    images: int | None
    price_per_hour: float | None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        on: Device | str,
        workers: int | None = None,
        price_per_hour: float | None = None,
        images: int | None = None,
    ) -> Plan:
        """Plan `recipe` on a device (or its name), one for each worker.

        workers: default, the recipe's least number. price_per_hour: of one device.
        Raises UserError for a device, base, target, precision or resolution that cannot be.
        """
        if price_per_hour is not None and not 0 <= price_per_hour < float("inf"):
            raise UserError(f"price per hour is {price_per_hour}: a number from 0 up")
        where = device(on) if isinstance(on, str) else on
        base = architecture.of(recipe.base)
        laid = setting(recipe, base.profile, where, workers)
        saved = saving(laid)
        time = duration(laid, images, price_per_hour, {"checkpoints and artifact": saved.seconds})
        return cls(laid, memory(laid), time, saved, base, images, price_per_hour)

    @property
    def fits(self) -> bool:
        return self.memory.needed_bytes <= self.limit_bytes

    @property
    def limit_bytes(self) -> int:
        """What each worker may have."""
        return self.setting.device.limit_bytes(self.setting.workers)

    @property
    def trainable(self) -> int:
        """Scalars that train."""
        return self.setting.sizes.trained

    def check(self) -> None:
        """Raise DoesNotFit, with the nearest settings that fit, when a device's memory is too small."""
        if self.fits:
            return
        s, needed = self.setting, self.memory.needed_bytes
        limit = self.limit_bytes
        found = self.remedies()
        kind, phase = s.recipe.tuning.kind, self.memory.peak.name
        what = f"{kind} tuning needs {bytes_text(needed)} on each {s.device.name} ({phase})"
        have = f"it has {bytes_text(limit)}"
        if s.device.shared and s.workers > 1:
            have += f" ({bytes_text(s.device.memory_bytes)} for {s.workers} workers)"
        if found:
            fix = "add " + ", or ".join(f"{remedy} ({bytes_text(remedy.needed_bytes)})" for remedy in found)
        else:
            fix = self._larger()
        raise DoesNotFit(f"{what}, {have}: {fix}", needed, limit, found)

    def remedies(self) -> list[Remedy]:
        """Up to three sets of settings that fit, nearest first; empty when none does."""
        s = self.setting
        return remedies(s.recipe, s.workers, self._needed, s.device, s.precision)

    @cached_property
    def advice(self) -> Advice:
        """Which of the three methods for this data and hardware."""
        s = self.setting
        return advise(s.recipe, self.images, s.workers, self._needed, s.device.limit_bytes)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the run much slower than it need be."""
        s = self.setting
        if s.device.kind == "cpu" and s.width == 2 and not s.device.bf16:
            return (
                f"parallel.precision={s.precision}: a CPU without AMX is about {SLOW_HALF:g} times slower in 16 bits; "
                "parallel.precision=fp32 is faster where its memory is there",
            )
        return ()

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the numbers rest on and was not counted or measured."""
        s = self.setting
        notes = list(self.duration.assumptions)
        if s.device.assumed:
            notes.append(s.device.assumed)
        if s.device.kind == "gpu":
            notes.append("1 GiB of CUDA context and 3 % of fragmentation, estimated; everything else is counted")
        if self.architecture.assumption:
            notes.append(self.architecture.assumption)
        if any(part.approximate for part in s.sizes.parts):
            notes.append("activations and time of these targets are bounded by those of adapters on more layers")
        if s.autocast:
            notes.append("activations under autocast are 1.5 times those of 16-bit weights, estimated")
        if s.recipe.parallel.compile:
            notes.append("compilation is counted as if it changed neither memory nor time")
        if self.images is None:
            notes.append("20 images, for the time of filling caches")
        if s.recipe.parallel.workers[0] != s.recipe.parallel.workers[1]:
            notes.append(f"{s.workers} workers throughout, of {list(s.recipe.parallel.workers)}")
        return tuple(notes)

    def rows(self) -> list[dict[str, Any]]:
        """One row per ZeRO stage and offload: bytes per device at the peak of training, and what is needed in all."""
        rows: list[dict[str, Any]] = []
        chosen = self.setting.recipe.parallel
        if chosen.engine == "zero":  # an automatic stage is the row of the one that is used
            chosen = chosen.model_copy(update={"zero_stage": self.setting.stage})
        for label, changes in self._layouts():
            s = setting(
                override(self.setting.recipe, changes),
                self.architecture.profile,
                self.setting.device,
                self.setting.workers,
            )
            counted = memory(s)
            phase = max((counted.phase(n) for n in ("forward and backward", "step")), key=lambda p: p.total)
            named = {
                part: phase.parts[part] for part in ("weights", "gradients", "optimizer", "activations", "workspace")
            }
            rows.append(
                {
                    "layout": label,
                    **{path.removeprefix("parallel."): value for path, value in changes.items()},
                    **named,
                    "other": phase.total - sum(named.values()),
                    "training": phase.total,
                    "host": counted.host_bytes,
                    "needed": counted.needed_bytes,
                    "fits": counted.needed_bytes <= self.limit_bytes,
                    "chosen": s.recipe.parallel == chosen,
                }
            )
        return rows

    def plain(self) -> dict[str, Any]:
        """Everything as plain numbers and strings."""
        s = self.setting
        return {
            "base": s.recipe.base.id,
            "device": {"name": s.device.name, "memory_bytes": s.device.memory_bytes},
            "workers": s.workers,
            "precision": s.precision,
            "resolution": s.resolution,
            "batch": {"global": s.global_batch, "micro": s.micro_batch, "accumulation": s.accumulation},
            "parameters": {name: part.parameters for name, part in s.profile.components.items()},
            "trainable": s.sizes.trained,
            "artifact_bytes": s.artifact_bytes,
            "saving": self.saving.plain(),
            "memory": self.memory.plain(),
            "layouts": self.rows(),
            "time": self.duration.plain(),
            "fits": self.fits,
            "advice": {"recipe": self.advice.recipe, "reasons": list(self.advice.reasons)},
            "assumptions": list(self.assumptions),
        }

    def text(self) -> str:
        """The plan as aligned lines for a terminal."""
        return table.text(self)

    def _needed(self, recipe: Recipe, workers: int) -> int:
        return memory(setting(recipe, self.architecture.profile, self.setting.device, workers)).needed_bytes

    def _layouts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        optimizer, parameters = "parallel.offload_optimizer", "parallel.offload_parameters"
        if self.setting.recipe.parallel.engine == "local":
            yield "one process", {}
            return
        for stage in range(1 if self.setting.recipe.parallel.precision == "fp16" else 0, 4):
            label = f"ZeRO-{stage}" if stage else "data parallel"
            yield label, {"parallel.zero_stage": stage, optimizer: False, parameters: False}
        if self.setting.device.kind == "gpu":
            yield "ZeRO-2, optimizer on CPU", {"parallel.zero_stage": 2, optimizer: True, parameters: False}
            yield "ZeRO-3, optimizer on CPU", {"parallel.zero_stage": 3, optimizer: True, parameters: False}
            yield "ZeRO-3, all on CPU", {"parallel.zero_stage": 3, optimizer: True, parameters: True}

    def _larger(self) -> str:
        s = self.setting
        for larger in DEVICES.values():
            if larger.memory_bytes <= s.device.memory_bytes:
                continue
            try:
                plan = Plan.of(s.recipe, larger, s.workers)
            except UserError:
                continue
            if plan.fits:
                return f"no small change fits; the smallest GPU that does is {larger.name}"
        return "no small change fits, nor does any known GPU: use fewer pixels (data.resolution) or a smaller batch"
