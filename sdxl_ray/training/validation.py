"""The validation loss: held-out images at fixed noise and fixed timesteps, so that two steps can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.data.batch_sampler import Example
from sdxl_ray.io.collectives import gathered
from sdxl_ray.training.batch import BatchEncoder
from sdxl_ray.training.engine import TrainingEngine

#: Examples of one forward where the recipe names no micro-batch.
MOST_AT_ONCE = 8


@torch.no_grad()
def validation_loss(engine: TrainingEngine, parts: BatchEncoder, examples: Sequence[Example]) -> float:
    """Collective. Mean unweighted loss over every held-out example x `evaluation.draws` (noise, timestep) pairs.

    The timesteps of an example's draws lie evenly over the schedule, so few draws see easy and hard ones alike. The
    batches and the order of the sum do not depend on the number of workers, so neither does the value.
    """
    evaluation, group = parts.recipe.evaluation, engine.group
    terms = [(example, draw) for example in examples for draw in range(evaluation.draws)]
    batches = _batches(examples, evaluation.draws, _batch_size(parts.recipe))

    def losses(batch: list[int]) -> list[float]:
        x = parts.inputs([replace(terms[i][0], index=i) for i in batch], 0, evaluation.seed, "validation")
        steps = parts.diffusion.steps
        x.t_B = torch.tensor([int((terms[i][1] + 0.5) / evaluation.draws * steps) for i in batch])
        found: list[float] = parts.losses(engine, x.to(engine.device), weighted=False).tolist()
        return found

    engine.denoiser.eval()
    found = gathered(len(batches), lambda mine: [losses(batches[k]) for k in mine], group)
    engine.denoiser.train()
    return math.fsum(loss for batch in found for loss in batch) / len(terms)


def _batch_size(recipe: Recipe) -> int:
    """Examples of one forward. Without a micro-batch, training divides the global batch among its workers.

    The number of workers must not change the value, so a constant bounds the batch here instead.
    """
    return recipe.parallel.micro_batch or min(recipe.optim.batch_size, MOST_AT_ONCE)


def _batches(examples: Sequence[Example], draws: int, most: int) -> list[list[int]]:
    """Indices of terms (example-major), at most so many of one bucket in a batch."""
    found: list[list[int]] = []
    indexed = sorted((example.view.bucket, number) for number, example in enumerate(examples))
    for _, group in groupby(indexed, key=lambda pair: pair[0]):
        terms = [number * draws + draw for _, number in group for draw in range(draws)]
        found += [terms[start : start + most] for start in range(0, len(terms), most)]
    return found
