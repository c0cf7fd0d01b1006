"""The denoising loss: pure functions of predictions, targets and weights. Nothing random is drawn here."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sdxl_ray.config.schema import Objective
from sdxl_ray.models.noise_schedule import Diffusion


def timestep_weight(objective: Objective, diffusion: Diffusion, t_B: Tensor) -> Tensor:
    """Loss weight of each example's timestep, fp32 [B].

    min_snr (arXiv 2303.09556) and debiased (arXiv 2310.08442) are defined on the image's error; an epsilon error is
    snr times, a v error snr + 1 times the image's, which is what the weight is divided by.
    """
    if objective.weighting == "none":
        return torch.ones(t_B.shape, device=t_B.device)
    snr_B = diffusion.snr(t_B)
    on_image_B = snr_B.clamp_max(objective.snr_gamma) if objective.weighting == "min_snr" else snr_B.sqrt()
    scale_B = {"epsilon": snr_B, "v_prediction": snr_B + 1, "sample": torch.ones_like(snr_B)}[diffusion.prediction]
    return on_image_B / scale_B


def example_loss(prediction_BCHW: Tensor, target_BCHW: Tensor, objective: Objective) -> Tensor:
    """Unweighted loss of each example, fp32 [B]: mean over its elements."""
    prediction_BCHW, target_BCHW = prediction_BCHW.float(), target_BCHW.float()
    if objective.loss == "huber":
        loss_BCHW = F.huber_loss(prediction_BCHW, target_BCHW, reduction="none", delta=objective.huber_delta)
    else:
        loss_BCHW = F.mse_loss(prediction_BCHW, target_BCHW, reduction="none")
    return loss_BCHW.mean(dim=(1, 2, 3))
