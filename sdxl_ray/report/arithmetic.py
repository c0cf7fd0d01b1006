"""What arithmetic says of the real SDXL, computed by `sdxl_ray.plan` from its profile: nothing here is typed in."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.plan import DEVICES, Plan
from sdxl_ray.plan.time import image_flop, sample_flop, step_floor

#: Memory and time are planned for one of these; sizes do not depend on it.
GPU = "h200"
RANKS = (1, 2, 4, 16, 64)
OPTIMIZERS, BATCHES = ("adamw", "adamw8bit", "adafactor"), (1, 4)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class MemoryComparison:
    """LoRA against full tuning under one setting: bytes on one GPU, and how many times more full tuning needs."""

    optimizer: str
    batch: int
    checkpointing: bool
    lora_bytes: int
    full_bytes: int

    @property
    def ratio(self) -> float:
        return self.full_bytes / self.lora_bytes


class Sdxl:
    """Stable Diffusion XL 1.0 at 1024 px as the shipped recipes tune it. Plans are made when they are asked for."""

    @cached_property
    def _lora(self) -> Recipe:
        return recipe_files.load("lora")

    @cached_property
    def _full(self) -> Plan:
        return Plan.of(override(recipe_files.load("dreambooth"), {"data.prior": None}), GPU, 1)

    @property
    def unet(self) -> int:
        """Scalars of the UNet."""
        return self._full.setting.profile.components["unet"].parameters

    @property
    def unet_bytes(self) -> int:
        """Of the UNet in fp16."""
        return self._full.setting.sizes.trained_bytes

    @property
    def pipeline_bytes(self) -> int:
        """Of every part in fp16: what stands alone."""
        return self._full.setting.sizes.artifact_bytes

    def trained(self, rank: int, targets: tuple[str, ...] = ATTENTION) -> int:
        """Scalars of a LoRA."""
        return self._of_rank(rank, targets).trainable

    def file_bytes(self, rank: int) -> int:
        """Of a LoRA's file in fp16."""
        return self._of_rank(rank, ATTENTION).setting.sizes.artifact_bytes

    def nearest_to(self, factor: float) -> tuple[str, float]:
        """The smallest LoRA's targets (rank 1) whose share of the UNet is nearest to 1 / factor, and that factor."""
        choices = [(target,) for target in ATTENTION] + [ATTENTION[:3], ATTENTION]
        factors = {targets: self.unet / self.trained(1, targets) for targets in choices}
        best = min(factors, key=lambda targets: abs(factors[targets] - factor))
        return " ".join(best), factors[best]

    def memory(self) -> list[MemoryComparison]:
        """The grid of optimizer, batch and checkpointing on one GPU."""
        found = []
        for optimizer, batch, checkpointing in itertools.product(OPTIMIZERS, BATCHES, (True, False)):
            lora, full = self._pair(optimizer, batch, checkpointing)
            needed = (lora.memory.needed_bytes, full.memory.needed_bytes)
            found.append(MemoryComparison(optimizer, batch, checkpointing, *needed))
        return found

    def arithmetic_ratio(self) -> float:
        """FLOP of a sample in full tuning over those in LoRA, without checkpointing."""
        lora, full = self._pair("adamw", 1, False)
        return sample_flop(full.setting) / sample_flop(lora.setting)

    def step_ratio(self) -> float:
        """The least time of a step at batch 1 with AdamW, whose traffic over every weight LoRA does not have."""
        lora, full = self._pair("adamw", 1, False)
        return step_floor(full.setting) / step_floor(lora.setting)

    def distilled_ratio(self, few: int = 4, usual: int = 30, guidance: float = 7.5) -> float:
        """FLOP of an image at the usual number of steps with guidance over one at few steps without."""
        setting = self._full.setting
        return image_flop(setting, usual, guidance) / image_flop(setting, few, 1.0)

    def _of_rank(self, rank: int, targets: tuple[str, ...]) -> Plan:
        return Plan.of(override(self._lora, {"tuning.rank": rank, "tuning.target_modules": list(targets)}), GPU, 1)

    def _pair(self, optimizer: str, batch: int, checkpointing: bool) -> tuple[Plan, Plan]:
        changes: dict[str, Any] = {
            "optim.name": optimizer,
            "optim.batch_size": batch,
            "parallel.gradient_checkpointing": checkpointing,
            "parallel.micro_batch": None,
            "parallel.zero_stage": 0,
        }
        plans = (override(recipe, changes) for recipe in (self._lora, self._full.setting.recipe))
        lora, full = (Plan.of(recipe, DEVICES[GPU], 1) for recipe in plans)
        return lora, full
