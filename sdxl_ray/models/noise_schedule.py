"""The forward process of a base: its noise schedule, and every random number that a training step needs.

Randomness is counted: noise and timestep of an example depend on (seed, step, index in the global batch) and on nothing
else, so a run is the same however it is cut over workers and accumulation steps, and resuming needs no generator state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sdxl_ray.config.schema import Objective, TimestepBias
from sdxl_ray.errors import UserError
from sdxl_ray.metrics.counted_random import counted

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Diffusion:
    """A discrete diffusion: cumulative signal shares and what the model predicts.

    alphas_cumprod_T: share of signal variance at each timestep, fp32, strictly falling (arXiv 2006.11239).
    """

    alphas_cumprod_T: Tensor
    prediction: Prediction

    @classmethod
    def of(cls, scheduler_config: Any, objective: Objective) -> Diffusion:
        """The schedule of a base's scheduler under an objective.

        Raises UserError when zero-terminal SNR is asked for with a prediction that cannot express it (at SNR 0 noise
        says nothing about the image: arXiv 2305.08891, section 3.3).
        """
        from diffusers import DDPMScheduler

        kind = str(scheduler_config.get("_class_name", ""))
        own: Prediction = scheduler_config.get("prediction_type", "epsilon")
        if own not in get_args(Prediction) or kind.startswith(("EDM", "FlowMatch", "CosineDPM")):
            raise UserError(
                f"this base's scheduler {kind or 'of prediction ' + own} is not one of SDXL's discrete diffusion: "
                "give a base whose scheduler has betas and predicts epsilon, v_prediction or sample"
            )
        prediction = own if objective.prediction == "auto" else objective.prediction
        if objective.zero_terminal_snr and prediction != "v_prediction":
            raise UserError(
                f"objective.zero_terminal_snr needs v_prediction, this base predicts {prediction}: "
                "set objective.prediction=v_prediction or objective.zero_terminal_snr=false"
            )
        fields = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        betas = {name: scheduler_config[name] for name in fields if name in scheduler_config}
        zero = objective.zero_terminal_snr or bool(scheduler_config.get("rescale_betas_zero_snr", False))
        if zero and prediction == "epsilon":
            raise UserError(
                "this base's scheduler has zero-terminal SNR, where epsilon says nothing about the image: "
                "set objective.prediction=v_prediction"
            )
        scheduler = DDPMScheduler(**betas, rescale_betas_zero_snr=zero)
        return cls(scheduler.alphas_cumprod.float(), prediction)

    @property
    def steps(self) -> int:
        """Number of training timesteps T."""
        return len(self.alphas_cumprod_T)

    def _mix(self, t_B: Tensor, like_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        signal_B = self.alphas_cumprod_T.to(like_BCHW.device, non_blocking=True)[t_B]
        signal_B111 = signal_B.view(-1, 1, 1, 1).to(like_BCHW.dtype)
        return signal_B111.sqrt(), (1 - signal_B111).sqrt()

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """x_t = sqrt(a) x_0 + sqrt(1 - a) noise, [B, C, H, W]."""
        a, b = self._mix(t_B, latents_BCHW)
        return a * latents_BCHW + b * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the model should predict: the noise, the velocity (arXiv 2202.00512) or the image."""
        if self.prediction == "epsilon":
            return noise_BCHW
        if self.prediction == "sample":
            return latents_BCHW
        a, b = self._mix(t_B, latents_BCHW)
        return a * noise_BCHW - b * latents_BCHW

    def snr(self, t_B: Tensor) -> Tensor:
        """Signal-to-noise ratio a / (1 - a), fp32 [B]."""
        a_B = self.alphas_cumprod_T.to(t_B.device, non_blocking=True)[t_B]
        return a_B / (1 - a_B)


def scheduler_overrides(objective: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline's scheduler config must say after training under `objective` (its plain dict)."""
    overrides: dict[str, Any] = {}
    if objective.get("prediction", "auto") != "auto":
        overrides["prediction_type"] = objective["prediction"]
    if objective.get("zero_terminal_snr"):
        # Trailing spacing starts at the last timestep, the one that has no signal left (arXiv 2305.08891).
        overrides |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return overrides


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator whose stream depends on its arguments only."""
    return torch.Generator().manual_seed(int(counted(seed, purpose, *counters).integers(2**63)))


def gaussian(seed: int, purpose: str, step: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal fp32 [len(indices), *shape]; row i depends on (seed, purpose, step, indices[i]) only."""
    return torch.stack([torch.randn(*shape, generator=generator(seed, purpose, step, i)) for i in indices])


def timestep_cdf(steps: int, bias: TimestepBias) -> Tensor:
    """Cumulative distribution over timesteps, fp64 [steps]: flat, except for the biased range."""
    weights = torch.ones(steps, dtype=torch.float64)
    first = min(round(bias.begin * steps), steps - 1)  # a range narrower than a timestep still has one
    weights[first : max(round(bias.end * steps), first + 1)] *= bias.multiplier
    return weights.cumsum(0) / weights.sum()


def draw(
    objective: Objective, steps: int, seed: int, step: int, indices: Sequence[int], shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Noise fp32 [B, *shape] and timesteps int64 [B] of the examples `indices` of global batch `step`."""
    noise_BCHW = gaussian(seed, "noise", step, indices, shape)
    if objective.noise_offset:
        offset_BC11 = gaussian(seed, "noise offset", step, indices, (shape[0], 1, 1))
        noise_BCHW = noise_BCHW + objective.noise_offset * offset_BC11
    uniform_B = torch.tensor([counted(seed, "timestep", step, i).random() for i in indices], dtype=torch.float64)
    t_B = torch.searchsorted(timestep_cdf(steps, objective.timestep_bias), uniform_B, right=True)
    return noise_BCHW, t_B.clamp_max(steps - 1)
