"""The running images of one size, and one denoising step of all of them in one call of the UNet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdxl_ray.models.text_encoders import align
from serve.engine.image_job import RequestJob
from serve.engine.multi_lora import LoraLayers, Masks
from serve.engine.schedulers import ImageScheduler


@dataclass(eq=False)
class RunningImage:
    """An image being denoised.

    latents [1, C, H, W]; hidden [R, L, C], pooled [R, P] and time_ids [R, 6] of its R rows: (unconditional,
    conditional), or the latter alone without guidance.
    """

    job: RequestJob
    sampler: ImageScheduler
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
        """Images of the same size can share a call."""
        return tuple(self.latents_1CHW.shape[2:])

    @property
    def done(self) -> bool:
        """Whether all steps were taken."""
        return self.step == len(self.sampler.timesteps)

    def advance(self, prediction_1CHW: Tensor, images: int) -> None:
        """Take a step on a prediction that was made for `images` at once."""
        self.latents_1CHW, self.foreseen_1CHW = self.sampler.step(prediction_1CHW, self.step, self.latents_1CHW)
        self.step += 1
        self.companions += images


class DenoiseBatch:
    """What stays the same from step to step while no image joins or leaves: conditioning and masks, stacked once."""

    def __init__(self, running_images: Sequence[RunningImage], lora: LoraLayers) -> None:
        self.running_images = tuple(running_images)
        self._rows = [running for running in running_images for _ in range(running.rows)]
        self._hidden_RLC = align([row_LC for running in running_images for row_LC in running.hidden_RLC])
        self._added = {
            "text_embeds": torch.cat([running.pooled_RP for running in running_images]),
            "time_ids": torch.cat([running.time_ids_R6 for running in running_images]),
        }
        self._lora = lora
        self._masks: Masks | None = lora.masks([f.job.strengths for f in self._rows], self._hidden_RLC.device)

    def step(self, unet: Any) -> None:
        """Take every image one step on."""
        scaled = {
            running: running.sampler.scaled(running.latents_1CHW, running.step) for running in self.running_images
        }
        t_R = torch.tensor([running.sampler.timesteps[running.step] for running in self._rows])
        self._lora.use(self._masks)
        prediction_RCHW = unet(
            torch.cat([scaled[running] for running in self._rows]),
            t_R.to(self._hidden_RLC.device, non_blocking=True),
            encoder_hidden_states=self._hidden_RLC,
            added_cond_kwargs=self._added,
            return_dict=False,
        )[0]
        row = 0
        for running in self.running_images:
            own_RCHW = prediction_RCHW[row : row + running.rows]
            row += running.rows
            if running.rows == 2:
                free_1CHW, predicted_1CHW = own_RCHW.chunk(2)
                own_RCHW = free_1CHW + running.job.request.guidance_scale * (predicted_1CHW - free_1CHW)
            running.advance(own_RCHW, len(self.running_images))
