"""A recipe laid over devices: everything that decides memory and time, resolved to numbers once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdxl_ray.config.layout import zero_stage
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import TOKEN_LENGTHS
from sdxl_ray.errors import UserError
from sdxl_ray.plan.devices import Device
from sdxl_ray.plan.profile import ModelProfile
from sdxl_ray.plan.sizes import Sizes, sizes

_WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class RunShape:
    """workers: processes, one GPU each. width: bytes of a number in forward and backward; vae_width: in the VAE.

    latent_pixels: of one sample. global_batch: samples of an optimizer step, class images included.
    micro_batch: samples of one forward on one worker; accumulation: forwards of one step on one worker.
    """

    recipe: Recipe
    profile: ModelProfile
    device: Device
    sizes: Sizes
    workers: int
    precision: str
    width: int
    vae_width: int
    resolution: int
    latent_pixels: int
    global_batch: int
    micro_batch: int
    accumulation: int

    @property
    def stage(self) -> int:
        """ZeRO stage; without ZeRO every worker holds everything, as in stage 0."""
        return zero_stage(self.recipe, self.workers, half=self.width == 2) or 0

    @property
    def text_chunks(self) -> int:
        """Chunks that the longest captions are encoded in."""
        return self.recipe.data.max_token_length // TOKEN_LENGTHS[0]

    @property
    def artifact_dtype(self) -> str:
        """Of the weights that the run leaves."""
        return self.recipe.artifact.written_in(self.recipe.tuning.kind, self.precision)

    @property
    def artifact_width(self) -> int:
        """Bytes of a number of the weights that the run leaves."""
        return _WIDTHS[self.artifact_dtype]

    @property
    def artifact_bytes(self) -> int:
        """Bytes of the weights that the run leaves."""
        return self.sizes.file_bytes(self.artifact_width)

    @property
    def autocast(self) -> bool:
        """Whether fp32 weights are cast in every forward: stage 0 and the local engine in 16 bits."""
        return self.stage == 0 and self.width == 2

    def share(self, numbers: int, from_stage: int) -> int:
        """Of so many numbers, what one worker holds when ZeRO splits them from that stage on."""
        return math.ceil(numbers / self.workers) if self.stage >= from_stage else numbers


def setting(recipe: Recipe, profile: ModelProfile, device: Device, workers: int | None) -> RunShape:
    """Resolve a recipe's automatic choices on a device as the run itself does.

    workers None: the recipe's least number. Raises UserError for a resolution or a precision that cannot be.
    """
    count = workers if workers is not None else recipe.parallel.workers[0]
    if count < 1:
        raise UserError(f"workers is {count}: at least 1")
    if recipe.parallel.engine == "local" and count != 1:
        raise UserError(f"engine local is one process, workers is {count}: use parallel.engine=zero")
    precision = recipe.parallel.precision
    if precision == "auto":
        precision = "bf16" if device.kind == "gpu" and device.bf16 else "fp32"
    if precision == "bf16" and device.kind == "gpu" and not device.bf16:
        raise UserError(f"parallel.precision=bf16: a {device.name} has no bf16; use parallel.precision=fp16")
    native = profile.native_latent * profile.vae_factor
    resolution = recipe.data.resolution or native
    if resolution % profile.vae_factor:
        fix = max(1, round(resolution / profile.vae_factor)) * profile.vae_factor
        raise UserError(f"data.resolution {resolution} is not a multiple of {profile.vae_factor}: use {fix}")
    prior = recipe.data.prior
    batch = recipe.optim.batch_size
    batch += max(1, math.floor(batch * prior.ratio + 0.5)) if prior is not None else 0
    per_worker = math.ceil(batch / count)
    accumulation = math.ceil(per_worker / (recipe.parallel.micro_batch or per_worker))
    vae = "fp32" if recipe.base.vae_precision == "auto" else recipe.base.vae_precision
    return RunShape(
        recipe=recipe,
        profile=profile,
        device=device,
        sizes=sizes(recipe, profile),
        workers=count,
        precision=precision,
        width=_WIDTHS[precision],
        vae_width=_WIDTHS[vae],
        resolution=resolution,
        latent_pixels=(resolution // profile.vae_factor) ** 2,
        global_batch=batch,
        micro_batch=math.ceil(batch / (count * accumulation)),
        accumulation=accumulation,
    )
