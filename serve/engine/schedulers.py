"""An image's own scheduler: diffusers' object, stepped for that image alone.

Sources: Euler and Euler a arXiv 2206.00364 (and k-diffusion), DPM++ 2M arXiv 2211.01095, DDIM arXiv 2010.02502,
LCM arXiv 2310.04378. A scheduler keeps state (its step, earlier predictions), so images cannot share one; its
arithmetic is elementwise and small beside the UNet.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from torch import Tensor

from serve.engine.request import SCHEDULERS, NotDrawable

_DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2}
# DDIM clips to [-1, 1] by default, which is meant for pixels: latents reach further.
_KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    # name: class, what the base's config may override, what it may not
    "euler": (EulerDiscreteScheduler, {}, {"use_karras_sigmas": False}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}, {**_DPM, "use_karras_sigmas": False}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {}, {**_DPM, "use_karras_sigmas": True}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}, {}),
    "lcm": (LCMScheduler, {}, {}),
}
assert tuple(_KINDS) == SCHEDULERS


def make_scheduler(name: str, own: Any, changes: Mapping[str, Any] | None = None) -> Any:
    """A fresh scheduler on the noise schedule of `own` (the base's), with `changes` to its config.

    name: "default" for the class of `own`, else one of SCHEDULERS.
    """
    config = {**own.config, **(changes or {})}
    if name == "default":
        return type(own).from_config(config)
    kind, weak, strong = _KINDS[name]
    return kind.from_config({**weak, **config, **strong})


class ImageScheduler:
    """The walk of one image from noise to latents."""

    def __init__(self, scheduler: Any, num_inference_steps: int, generator: torch.Generator) -> None:
        """generator: the image's own, already used for its first noise, as the pipeline uses it.

        Raises NotDrawable for a number of steps that the scheduler cannot take.
        """
        try:
            # On the CPU: step numbers are looked up without waiting for a GPU.
            scheduler.set_timesteps(num_inference_steps, device="cpu")
        except (ValueError, IndexError, ZeroDivisionError) as error:
            said = f"num_inference_steps = {num_inference_steps}: {str(error).splitlines()[0]}"
            raise NotDrawable("num_inference_steps", said) from None
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        takes = inspect.signature(scheduler.step).parameters
        self._extra = {"generator": generator} if "generator" in takes else {}
        self._scheduler = scheduler
        self._timesteps = list(scheduler.timesteps)
        self.timesteps = [float(t) for t in self._timesteps]

    def start(self, noise_1CHW: Tensor) -> Tensor:
        """Standard normal noise -> the first latents."""
        first_1CHW: Tensor = noise_1CHW * self._scheduler.init_noise_sigma
        return first_1CHW

    def scaled(self, latents_1CHW: Tensor, step: int) -> Tensor:
        """Latents as the UNet wants them."""
        scaled_1CHW: Tensor = self._scheduler.scale_model_input(latents_1CHW, self._timesteps[step])
        return scaled_1CHW

    def step(self, prediction_1CHW: Tensor, step: int, latents_1CHW: Tensor) -> tuple[Tensor, Tensor]:
        """The next latents, and the image that is foreseen from here (as latents)."""
        out = self._scheduler.step(prediction_1CHW, self._timesteps[step], latents_1CHW, **self._extra)
        foreseen = out.get("pred_original_sample", out.get("denoised"))
        if foreseen is None:
            memory = getattr(self._scheduler, "model_outputs", None)  # a multistep solver remembers its predictions
            foreseen = memory[-1] if memory else out.prev_sample
        latents: tuple[Tensor, Tensor] = (out.prev_sample, foreseen)
        return latents
