"""The validation loss: held-out images at fixed noise and fixed timesteps, so that two steps can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from sdxl_ray.data.batch_sampler import Example
from sdxl_ray.io.collectives import gathered
from sdxl_ray.training.batch import BatchEncoder
from sdxl_ray.training.engine import TrainingEngine


@torch.no_grad()
def validation_loss(engine: TrainingEngine, parts: BatchEncoder, examples: Sequence[Example]) -> float:
    """Collective. Mean unweighted loss over every held-out example x `evaluation.draws` (noise, timestep) pairs.

    The timesteps of an example's draws lie evenly over the schedule, so few draws see easy and hard ones alike. The
    value does not depend on the number of workers: terms are summed in a fixed order.
    """
    evaluation, group = parts.recipe.evaluation, engine.group
    terms = [(example, draw) for example in examples for draw in range(evaluation.draws)]

    def loss(i: int) -> float:
        example, draw = terms[i]
        x = parts.inputs([replace(example, index=i)], 0, evaluation.seed, "validation")
        x.t_B = torch.tensor([int((draw + 0.5) / evaluation.draws * parts.diffusion.steps)])
        return float(parts.losses(engine, x.to(engine.device), weighted=False)[0])

    engine.denoiser.eval()
    losses = gathered(len(terms), lambda mine: [loss(i) for i in mine], group)
    engine.denoiser.train()
    return math.fsum(losses) / len(losses)
