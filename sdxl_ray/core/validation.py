"""The validation loss: held-out pictures at fixed noise and fixed timesteps, so that two steps can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from sdxl_ray.core.engine import Engine
from sdxl_ray.core.parts import Parts
from sdxl_ray.core.sampler import Example


@torch.no_grad()
def validation_loss(engine: Engine, parts: Parts, examples: Sequence[Example]) -> float:
    """Collective. Mean unweighted loss over every held-out example x `evaluation.draws` (noise, timestep) pairs.

    The timesteps of an example's draws lie evenly over the schedule, so few draws see easy and hard ones alike. The
    value does not depend on the number of workers: terms are summed in a fixed order.
    """
    evaluation, group = parts.recipe.evaluation, engine.group
    terms = [(example, draw) for example in examples for draw in range(evaluation.draws)]
    engine.denoiser.eval()
    mine: list[tuple[int, float]] = []
    # Under ZeRO-3 a forward is collective: every rank makes the same number, the last ones repeat a term if they must.
    for k in range(math.ceil(len(terms) / group.world)):
        i = min(k * group.world + group.rank, len(terms) - 1)
        example, draw = terms[i]
        x = parts.inputs([replace(example, index=i)], 0, evaluation.seed, "validation")
        x.t_B = torch.tensor([int((draw + 0.5) / evaluation.draws * parts.diffusion.steps)])
        mine.append((i, float(parts.losses(engine, x.to(engine.device), weighted=False)[0])))
    engine.denoiser.train()
    by_term = dict(pair for ranks in group.gather(mine) for pair in ranks)
    return math.fsum(by_term.values()) / len(by_term)
