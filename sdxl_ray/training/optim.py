"""Optimizers by name, and learning rates as a function of the step.

Every schedule of `diffusers.optimization` is a multiplier of the step, so nothing about it needs to be saved: a
resumed run asks for the multiplier of its step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from sdxl_ray.config.schema import Optim
from sdxl_ray.errors import UserError
from sdxl_ray.models.adapters import Trainable

_EXTRAS = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


def require_available(optim: Optim, device: str) -> None:
    """Raise UserError, before anything starts, when the optimizer's library is not installed or not for this device."""
    package = _EXTRAS.get(optim.name)
    if package and find_spec(package) is None:
        raise UserError(f"optim.name={optim.name} needs {package}: pip install 'sdxl-ray[{optim.name}]', or use adamw")
    if optim.name == "adamw8bit" and device == "cpu":
        raise UserError("optim.name=adamw8bit needs a GPU and this worker has none: use adamw or adafactor")


def param_groups(optim: Optim, trainable: Trainable) -> list[dict[str, Any]]:
    """Groups with their own learning rates: the UNet's, and half of it (or `text_lr`) for the text encoders.

    Prodigy steps all groups at one rate that it finds itself, and refuses any other.
    """
    default = optim.lr if optim.name == "prodigy" else optim.lr / 2
    text_lr = optim.text_lr if optim.text_lr is not None else default
    groups = [
        {"params": [p for _, p in trainable.unet], "lr": optim.lr},
        {"params": [p for _, p in trainable.text], "lr": text_lr},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(optim: Optim, trainable: Trainable) -> torch.optim.Optimizer:
    """The named optimizer over `trainable`."""
    groups = param_groups(optim, trainable)
    common: dict[str, Any] = {"weight_decay": optim.weight_decay}
    if optim.name == "adamw":
        fused = all(p.device.type in ("cuda", "cpu") for _, p in trainable.named)
        return torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, fused=fused, **common)
    if optim.name == "adafactor":
        from transformers.optimization import Adafactor

        # Its own step-size rules are off: the recipe's schedule decides.
        adafactor: torch.optim.Optimizer = Adafactor(
            groups, scale_parameter=False, relative_step=False, warmup_init=False, **common
        )
        return adafactor
    if optim.name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        eight: torch.optim.Optimizer = AdamW8bit(groups, betas=optim.betas, eps=optim.eps, **common)
        return eight
    from prodigyopt import Prodigy

    prodigy: torch.optim.Optimizer = Prodigy(
        groups, betas=optim.betas, eps=optim.eps, use_bias_correction=True, safeguard_warmup=True, **common
    )
    return prodigy


def lr_multiplier(optim: Optim) -> Callable[[int], float]:
    """Step (0-based) -> multiplier of every group's learning rate.

    Raises UserError when `step_rules` is not what diffusers reads.
    """
    from diffusers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

    function = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(optim.lr_scheduler)]
    known = {
        "num_warmup_steps": optim.warmup_steps,
        "num_training_steps": optim.steps,
        "step_rules": optim.step_rules,
        "power": optim.lr_power,
        # Plain cosine counts waves (half a wave falls from 1 to 0), restarts count whole falls.
        "num_cycles": optim.lr_num_cycles / 2 if optim.lr_scheduler == "cosine" else optim.lr_num_cycles,
    }
    wanted = {name: value for name, value in known.items() if name in inspect.signature(function).parameters}
    # polynomial reads the rate: it ends at 1e-7, whatever the rate was.
    some = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=optim.lr)
    try:
        schedule = function(some, **wanted)
    except ValueError:
        if optim.lr_scheduler == "polynomial":
            raise UserError(
                f"optim.lr {optim.lr}: lr_scheduler polynomial falls to 1e-7, set a larger rate or "
                "optim.lr_scheduler=linear"
            ) from None
        raise UserError(
            f"optim.step_rules {optim.step_rules!r}: write multiplier:step pairs, '1:10,0.1:20,0.01'"
        ) from None
    multiplier: Callable[[int], float] = schedule.lr_lambdas[0]
    return multiplier
