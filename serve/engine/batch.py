"""Pictures of one size in flight, and one denoising step of all of them in one call of the UNet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdxl_ray.core.text import align
from serve.engine.job import Job
from serve.engine.layers import LoraLayers, Masks
from serve.engine.schedulers import Sampler


@dataclass(eq=False)
class Flight:
    """A picture being denoised.

    latents [1, C, H, W]; hidden [R, L, C], pooled [R, P] and time_ids [R, 6] of its R rows: (unconditional,
    conditional), or the latter alone without guidance.
    """

    job: Job
    sampler: Sampler
    latents_1CHW: Tensor
    hidden_RLC: Tensor
    pooled_RP: Tensor
    time_ids_R6: Tensor
    step: int = 0
    joined: float = field(default_factory=time.monotonic)
    foreseen_1CHW: Tensor | None = None
    companions: int = 0

    @property
    def rows(self) -> int:
        """Rows in the UNet's batch."""
        return self.hidden_RLC.shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """Pictures of the same size can share a call."""
        return tuple(self.latents_1CHW.shape[2:])

    @property
    def done(self) -> bool:
        """Whether all steps were taken."""
        return self.step == len(self.sampler.timesteps)

    def advance(self, prediction_1CHW: Tensor, pictures: int) -> None:
        """Take a step on a prediction that was made for `pictures` at once."""
        self.latents_1CHW, self.foreseen_1CHW = self.sampler.step(prediction_1CHW, self.step, self.latents_1CHW)
        self.step += 1
        self.companions += pictures


class Batch:
    """What stays the same from step to step while no picture joins or leaves: conditioning and masks, stacked once."""

    def __init__(self, flights: Sequence[Flight], lora: LoraLayers) -> None:
        self.flights = tuple(flights)
        self._rows = [flight for flight in flights for _ in range(flight.rows)]
        self._hidden_RLC = align([row_LC for flight in flights for row_LC in flight.hidden_RLC])
        self._added = {
            "text_embeds": torch.cat([flight.pooled_RP for flight in flights]),
            "time_ids": torch.cat([flight.time_ids_R6 for flight in flights]),
        }
        self._lora = lora
        self._masks: Masks | None = lora.masks([f.job.strengths for f in self._rows], self._hidden_RLC.device)

    def step(self, unet: Any) -> None:
        """Take every picture one step on."""
        scaled = {flight: flight.sampler.scaled(flight.latents_1CHW, flight.step) for flight in self.flights}
        t_R = torch.tensor([flight.sampler.timesteps[flight.step] for flight in self._rows])
        self._lora.use(self._masks)
        prediction_RCHW = unet(
            torch.cat([scaled[flight] for flight in self._rows]),
            t_R.to(self._hidden_RLC.device, non_blocking=True),
            encoder_hidden_states=self._hidden_RLC,
            added_cond_kwargs=self._added,
            return_dict=False,
        )[0]
        row = 0
        for flight in self.flights:
            own_RCHW = prediction_RCHW[row : row + flight.rows]
            row += flight.rows
            if flight.rows == 2:
                free_1CHW, told_1CHW = own_RCHW.chunk(2)
                own_RCHW = free_1CHW + flight.job.request.guidance_scale * (told_1CHW - free_1CHW)
            flight.advance(own_RCHW, len(self.flights))
