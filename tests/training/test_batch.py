"""A batch goes to a device without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdxl_ray.config.schema import Objective
from sdxl_ray.models.denoiser import TextInputs
from sdxl_ray.models.losses import example_loss, timestep_weight
from sdxl_ray.models.noise_schedule import Diffusion
from sdxl_ray.models.text_encoders import TokenIds
from sdxl_ray.training.batch import Batch


class Copies(TorchDispatchMode):
    """Whether each copy to another device was one that does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.free: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") is not None:
            self.free.append(bool(kwargs.get("non_blocking")))
        return func(*args, **(kwargs or {}))


def test_a_step_copies_its_batch_without_waiting_for_the_device() -> None:
    """On a GPU a copy that waits ends only when the steps before it have; `meta` stands for another device."""
    text = TextInputs(
        (torch.randn(2, 77, 8), None),
        (None, TokenIds(torch.zeros(2, 77, dtype=torch.int64), (1, 1))),
        torch.randn(2, 8),
        torch.ones(2),
    )
    latents_BCHW = torch.randn(2, 4, 8, 8)
    batch = Batch(latents_BCHW, latents_BCHW + 1, torch.tensor([3, 7]), text, torch.ones(2, 6), torch.ones(2), [0, 1])
    diffusion = Diffusion(torch.linspace(0.99, 0.01, 10), "v_prediction")
    objective = Objective(weighting="min_snr")
    with Copies() as copies:
        x = batch.to(torch.device("meta"))
        noisy_BCHW = diffusion.add_noise(x.latents_BCHW, x.noise_BCHW, x.t_B)
        target_BCHW = diffusion.target(x.latents_BCHW, x.noise_BCHW, x.t_B)
        loss_B = example_loss(noisy_BCHW, target_BCHW, objective) * timestep_weight(objective, diffusion, x.t_B)
    assert loss_B.device.type == "meta"
    assert len(copies.free) == 12  # nine tensors of the batch, and the schedule three times
    assert all(copies.free)
