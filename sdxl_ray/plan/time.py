"""Seconds and money: counted FLOP and bytes over a device's data-sheet rates, times a share that is assumed.

Two figures are kept apart. The floor is what arithmetic and memory traffic cost at the full rates: no run is faster.
The estimate divides by a utilisation that is assumed, not measured, and so is a range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdxl_ray.plan.profile import LORA_RANK
from sdxl_ray.plan.setting import RunShape

#: Assumed, not measured: share of the data sheet's arithmetic that eager PyTorch reaches, at worst and at best.
UTILISATION = (0.25, 0.5)
#: Of fp32 on a GPU: TF32 runs at half the 16-bit rate.
FP32_RATE = 0.5
#: Measured: fp32's rate on a CPU without AMX against that of its 16-bit matrix products.
SLOW_HALF = 4.0
#: Bytes that a step moves for each trained scalar. AdamW reads four (weight, gradient, moments), writes three.
STEP_TRAFFIC = {"adamw": 28, "adamw8bit": 16, "adafactor": 28, "prodigy": 44}
#: GB/s between a GPU and the CPU's memory: PCIe 4.0 x16 in practice.
HOST_LINK = 20.0
#: GB/s of CPU memory for each worker, where offloaded state is stepped; assumed.
HOST_BANDWIDTH = 30.0
#: Seconds to start Ray and its workers and to load the base, assumed.
START_SECONDS = (20.0, 90.0)

Range = tuple[float, float]


@dataclass(frozen=True)
class Duration:
    """step_flop: of all samples of a step, forward and backward. floor_s: of a step at full rates, slowest worker.

    step_s, phases_s, total_s: assumed ranges (low, high). cost: total x workers x price, or None without a price.
    """

    step_flop: int
    floor_s: float
    step_s: Range
    phases_s: Mapping[str, Range]
    total_s: Range
    cost: Range | None
    assumptions: tuple[str, ...] = field(default=())

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "step_flop": self.step_flop,
            "floor_s": self.floor_s,
            "step_s": list(self.step_s),
            "phases_s": {name: list(span) for name, span in self.phases_s.items()},
            "total_s": list(self.total_s),
            "cost": list(self.cost) if self.cost is not None else None,
        }


def sample_flop(s: RunShape) -> int:
    """FLOP of one sample's forward and backward, and of encoding it where nothing is cached."""
    total = 0.0
    for part in s.sizes.parts:
        record = s.profile.train(part.part, part.mode, s.recipe.parallel.gradient_checkpointing)
        total += record.flop.at(s.latent_pixels)
        plain = s.profile.train(part.part, part.mode, False)
        total += (part.rank - LORA_RANK) * plain.per_rank_flop.at(s.latent_pixels) if part.mode != "full" else 0
    if not s.recipe.data.cache_latents:
        total += s.profile.flop["vae_encode"].at(s.latent_pixels)
    if not s.recipe.data.cache_text:
        trained = {part.part for part in s.sizes.parts}
        total += sum(s.profile.flop[n].constant for n in ("text_encoder", "text_encoder_2") if n not in trained)
    return round(total)


def image_flop(s: RunShape, steps: int, guidance: float) -> int:
    """FLOP of drawing one image: every step runs the UNet twice with guidance, once without; then the VAE decodes."""
    passes = 2 if guidance > 1 else 1
    flop, pixels = s.profile.flop, s.latent_pixels
    text = flop["text_encoder"].constant + flop["text_encoder_2"].constant
    return passes * steps * flop["unet"].at(pixels) + flop["vae_decode"].at(pixels) + text


def step_floor(s: RunShape) -> float:
    """Least seconds of a step on the slowest worker: arithmetic, the optimizer's memory traffic, moving gradients."""
    samples = s.micro_batch * s.accumulation
    arithmetic = samples * sample_flop(s) / _rate(s)
    mine = math.ceil(s.sizes.trained / s.workers) if s.stage else s.sizes.trained
    bandwidth = HOST_BANDWIDTH if s.recipe.parallel.offload_optimizer else s.device.bandwidth
    traffic = STEP_TRAFFIC[s.recipe.optim.name] * mine / (bandwidth * 1e9)
    return arithmetic + traffic + _exchange(s)


def duration(s: RunShape, images: int | None, price_per_hour: float | None, besides: Mapping[str, Range]) -> Duration:
    """Time of a whole run for so many training images (None: 20 are assumed where it matters).

    besides: seconds of what is no arithmetic, by name.
    """
    recipe, flop = s.recipe, s.profile.flop
    count = images if images is not None else 20
    work: dict[str, float] = {}
    prior = recipe.data.prior
    if prior is not None:
        drawn = math.ceil(prior.num_class_images / s.workers)
        work["class images"] = drawn * image_flop(s, prior.num_inference_steps, prior.guidance_scale)
    variants = (recipe.data.crop_variants if recipe.data.crop == "random" else 1) * (2 if recipe.data.flip else 1)
    views = (count + (prior.num_class_images if prior is not None else 0)) * variants
    if recipe.data.cache_latents:
        work["caches"] = math.ceil(views / s.workers) * flop["vae_encode"].at(s.latent_pixels)
    evaluations = 2 + (math.ceil(recipe.optim.steps / recipe.evaluation.every) - 1 if recipe.evaluation.every else 0)
    shown = math.ceil((len(recipe.evaluation.prompts) or 4) * recipe.evaluation.samples_per_prompt / s.workers)
    drawing = shown * image_flop(s, recipe.evaluation.num_inference_steps, recipe.evaluation.guidance_scale)
    checking = math.ceil(recipe.data.holdout * recipe.evaluation.draws / s.workers) * flop["unet"].at(s.latent_pixels)
    work["samples and validation"] = evaluations * (drawing + checking)
    work |= _scoring(s, evaluations)
    low, high = UTILISATION
    phases: dict[str, Range] = {"start": START_SECONDS}
    phases |= {name: (amount / _rate(s) / high, amount / _rate(s) / low) for name, amount in work.items()}
    floor = step_floor(s)
    phases["training"] = (floor / high * recipe.optim.steps, floor / low * recipe.optim.steps)
    phases |= besides
    total = (sum(low for low, _ in phases.values()), sum(high for _, high in phases.values()))
    cost = None
    if price_per_hour is not None:
        cost = (total[0] / 3600 * price_per_hour * s.workers, total[1] / 3600 * price_per_hour * s.workers)
    return Duration(
        step_flop=s.global_batch * sample_flop(s),
        floor_s=floor,
        step_s=(floor / high, floor / low),
        phases_s=phases,
        total_s=total,
        cost=cost,
        assumptions=(f"time: {low:.0%} to {high:.0%} of {_named_rate(s)}; assumed, not measured",),
    )


def _scoring(s: RunShape, evaluations: int) -> dict[str, float]:
    """FLOP a worker of the scores during training, with the base's; none for a run that is not scored."""
    recipe, evaluated = s.recipe, s.recipe.evaluation
    unknown = recipe.data.subject is None or recipe.data.known_class is None
    few = recipe.data.validation is None and recipe.data.holdout < 2  # as the trainer decides, images apart
    if evaluated.scores == "never" or evaluated.every == 0 or unknown or few:
        return {}
    drawn = math.ceil((evaluated.score_prompts * evaluated.score_seeds + evaluated.class_images) / s.workers)
    return {"scores": evaluations * drawn * image_flop(s, evaluated.num_inference_steps, evaluated.guidance_scale)}


def _rate(s: RunShape) -> float:
    """FLOP a second at the full rate of the precision."""
    slower = FP32_RATE if s.width == 4 and s.device.kind == "gpu" else 1.0
    if s.width == 2 and s.device.kind == "cpu" and not s.device.bf16:
        slower = 1 / SLOW_HALF
    return s.device.teraflops * 1e12 * slower


def _named_rate(s: RunShape) -> str:
    source = "a guess for one process" if s.device.kind == "cpu" else f"the {s.device.name}'s data sheet"
    return f"{_rate(s) / 1e12:g} TFLOP/s ({source})"


def _exchange(s: RunShape) -> float:
    """Seconds of moving bytes between workers in a step, as if nothing overlapped.

    Gradients and weights of what trains pass once each; ZeRO-3 gathers every weight for each forward and backward.
    Offloaded state crosses the link to the CPU: gradients out, weights in.
    """
    others = (s.workers - 1) / s.workers
    trained, frozen = s.sizes.trained, s.sizes.frozen
    moved = 2 * s.width * trained * others
    if s.stage == 3:
        moved = s.width * (trained + 2 * s.accumulation * (trained + frozen)) * others
    to_host = 0.0
    if s.recipe.parallel.offload_optimizer:
        to_host += (s.width + s.width) * trained / s.workers
    if s.recipe.parallel.offload_parameters:
        to_host += 2 * s.accumulation * s.width * (trained + frozen) / s.workers
    return moved / (s.device.link * 1e9) + to_host / (min(s.device.link, HOST_LINK) * 1e9)
