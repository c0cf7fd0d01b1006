"""Bytes on one worker in every phase of a run: what DeepSpeed, the optimizer and autograd hold, added up.

What is held by ZeRO is read in DeepSpeed's source (0.19): stages 1 and 2 keep 16-bit weights whole and clone an fp32
partition of what trains; stage 3 shards the weights too and keeps a flat gradient partition; stage 0 keeps fp32
weights whole and casts them in every forward (arXiv 1910.02054, section 5, adds the same up for Adam).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdxl_ray.plan.activations import backward_moments
from sdxl_ray.plan.setting import RunShape
from sdxl_ray.plan.sizes import ENCODERS

GIB = 1024**3

#: Scalars that ZeRO reduces at once; its own default is five times that, 1 GB even for adapters.
BUCKET = 100_000_000
#: Scalars of weights that ZeRO-3 may hold whole at once.
LIVE = 200_000_000
#: Images that pass the VAE together, encoded or decoded: in fp32 one of 1024 px takes gigabytes.
VAE_BATCH = 1
#: Sample images that are drawn together.
SAMPLE_BATCH = 4
#: Captions encoded together.
CAPTION_BATCH = 32

#: An estimate: CUDA context, cuBLAS and cuDNN workspaces, NCCL's buffers, which no allocator counts.
CONTEXT_BYTES = round(1.0 * GIB)
#: An estimate: share of the peak that the caching allocator holds but cannot use.
FRAGMENTATION = 0.03
#: Measured on Linux: resident bytes of a process that has imported everything and has no model, by engine.
PROCESS_BYTES = {"local": 520 * 1024**2, "zero": 670 * 1024**2}

#: Optimizer state in bytes per trained scalar, and what its step needs besides. ZeRO hands the optimizer flat fp32
#: partitions, which Adafactor cannot factor; without ZeRO it keeps rows and columns only.
_STATE = {"adamw": 8.0, "adamw8bit": 2.0 + 2 * 4 / 256, "adafactor": 4.0, "prodigy": 16.0}
_STEP = {"adamw": 0, "adamw8bit": 0, "adafactor": 8, "prodigy": 8}
_FACTORED_STATE = 0.02


def zero_settings(trained: int, stage: int) -> dict[str, int]:
    """The sizes of DeepSpeed's `zero_optimization` that plans count with."""
    bucket = max(1, min(BUCKET, trained))
    settings = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if stage == 3:
        settings |= {"stage3_max_live_parameters": LIVE, "stage3_max_reuse_distance": LIVE}
        settings |= {"stage3_prefetch_bucket_size": LIVE // 4}
    return settings


@dataclass(frozen=True)
class Phase:
    """What one worker holds at the worst moment of one phase, by part, in bytes."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """The phases of a run on one worker. host_bytes: CPU memory of offloaded state, per worker."""

    phases: tuple[Phase, ...]
    overhead_bytes: int
    host_bytes: int

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    def phase(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def allocated_bytes(self) -> int:
        """What the run's tensors take at the peak: on a GPU, `torch.cuda.max_memory_allocated`."""
        return self.peak.total

    @property
    def training_bytes(self) -> int:
        """The same for the optimizer's steps alone, without preparation, samples and export."""
        return max(self.phase(name).total for name in ("forward and backward", "step"))

    @property
    def needed_bytes(self) -> int:
        """What a device must have: the peak and what is never counted as allocated."""
        return self.peak.total + self.overhead_bytes

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        phases = {phase.name: {**phase.parts, "total": phase.total} for phase in self.phases}
        return {
            "phases": phases,
            "peak_phase": self.peak.name,
            "allocated_bytes": self.allocated_bytes,
            "training_bytes": self.training_bytes,
            "overhead_bytes": self.overhead_bytes,
            "needed_bytes": self.needed_bytes,
            "host_bytes": self.host_bytes,
        }


def memory(s: RunShape) -> Memory:
    """Bytes on each worker of a setting."""
    held = _Held(s)
    phases = [_prepare(s), held.forward_backward(), held.step(), held.evaluation()]
    if s.stage == 3:
        phases.append(held.export())
    if s.device.kind == "cpu":
        phases.append(held.checkpoint())
        # On a CPU nothing can be given back to another memory: every part of the pipeline stays beside the training,
        # and offloaded state moves from one place in it to another.
        process = PROCESS_BYTES[s.recipe.parallel.engine]
        phases = [
            Phase(p.name, {"process": process, **p.parts, **_others(s, p), **_offloaded(p, held.host_bytes())})
            for p in phases
        ]
        return Memory(tuple(phases), 0, 0)
    peak = max(phase.total for phase in phases)
    return Memory(tuple(phases), CONTEXT_BYTES + round(peak * FRAGMENTATION), held.host_bytes())


def moment_bytes(s: RunShape, scalars: int) -> int:
    """The optimizer's state of so many trained scalars."""
    name = s.recipe.optim.name
    factored = name == "adafactor" and s.stage == 0
    return round((_FACTORED_STATE if factored else _STATE[name]) * scalars)


def checkpoint_bytes(s: RunShape) -> int:
    """Of one checkpoint: fp32 weights, the optimizer's moments, and the average where there is one."""
    average = 4 if s.recipe.optim.ema_decay is not None else 0
    return (4 + average) * s.sizes.trained + moment_bytes(s, s.sizes.trained)


class _Held:
    """What stays on a worker while it trains, and what comes and goes on top."""

    def __init__(self, s: RunShape) -> None:
        self.s = s
        self.trained, self.frozen = s.sizes.trained, s.sizes.frozen
        self.mine = s.share(self.trained, 1)  # the optimizer's part
        parallel = s.recipe.parallel
        self.offload_optimizer, self.offload_parameters = parallel.offload_optimizer, parallel.offload_parameters

    @property
    def weights(self) -> int:
        s = self.s
        if s.stage == 0:
            adapters = s.recipe.tuning.kind == "lora"
            return 4 * self.trained + (s.width if adapters else 4) * self.frozen
        return 0 if self.offload_parameters else s.width * s.share(self.trained + self.frozen, 3)

    @property
    def master(self) -> int:
        """fp32 weights beside those of the forward; ZeRO-3 in fp32 steps the shards themselves."""
        if self.s.stage == 0 or (self.s.stage == 3 and self.s.width == 4):
            return 0
        return 4 * self.mine

    @property
    def moments(self) -> int:
        return moment_bytes(self.s, self.mine)

    @property
    def gradient_width(self) -> int:
        return 4 if self.s.stage == 0 else self.s.width

    @property
    def gradients(self) -> int:
        """All of a step's gradients as backward leaves them."""
        if self.offload_optimizer and self.s.stage >= 2:
            return 0
        return self.gradient_width * self.s.share(self.trained, 2)

    @property
    def ema(self) -> int:
        return 4 * self.s.share(self.trained, 3) if self.s.recipe.optim.ema_decay is not None else 0

    def resident(self) -> dict[str, int]:
        """Bytes by part that a GPU holds from the first step to the last."""
        optimizer = 0 if self.offload_optimizer else self.master + self.moments
        parts = {"weights": self.weights, "optimizer": optimizer, "ema": self.ema}
        if not (self.s.recipe.data.cache_latents and self.s.recipe.data.cache_text) and self.s.device.kind == "gpu":
            parts["encoders"] = guests(self.s)
        return parts

    def workspace(self) -> int:
        """ZeRO's buckets, gathered weights of stage 3, cast weights of autocast."""
        s = self.s
        bucket = min(BUCKET, self.trained) * self.gradient_width
        if s.stage == 0:
            local = s.recipe.parallel.engine == "local"
            cast = s.width * self.trained if s.autocast else 0
            return cast + (0 if local else bucket)
        live = s.width * min(LIVE, self.trained + self.frozen) if s.stage == 3 else 0
        return bucket + live

    def forward_backward(self) -> Phase:
        """The worst moment of backward: what is still kept for it, and the gradients it has already made."""
        s = self.s
        flat = s.accumulation > 1 or s.stage == 3  # earlier forwards' gradients are there from the start
        moments = backward_moments(s)
        kept, made = max(moments, key=lambda m: m[0] + (0 if flat else m[1] * self.gradients))
        gradients = self.gradients if flat else round(made * self.gradients)
        return Phase(
            "forward and backward",
            {**self.resident(), "gradients": gradients, "activations": kept, "workspace": self.workspace()},
        )

    def step(self) -> Phase:
        """The optimizer's step, at the worse of two moments of each partition.

        First the 16-bit gradients, their flat copy and its fp32 copy meet; then, with the fp32 gradient alone, the
        optimizer makes its own intermediate results.
        """
        optim, parts = self.s.recipe.optim, self.resident()
        own = self.gradient_width * self.mine
        working = 0 if optim.name == "adafactor" and self.s.stage == 0 else _STEP[optim.name] * self.mine
        if self.offload_optimizer:
            gradients = working = 0
        elif self.s.stage == 0:
            gradients = self.gradients
        elif self.s.stage == 3:
            gradients = self.gradients + 4 * self.mine
        else:
            flattened = 2 * own + (4 * self.mine if self.s.width == 2 else 0)
            gradients = max(flattened, 4 * self.mine + working)
            working = 0
        if optim.ema_decay is not None and self.gradient_width == 2:
            # The average reads every weight as fp32 at once, when the gradients are gone.
            working = max(working, self.ema - gradients)
        return Phase("step", {**parts, "gradients": gradients, "activations": 0, "workspace": working})

    def evaluation(self) -> Phase:
        """Drawing samples beside the training's state: the VAE and frozen text encoders come back for it."""
        s = self.s
        parts = self.resident()
        keep = self.gradients if s.stage == 3 else 0
        averaged = s.width * s.share(self.trained, 3) if self.ema else 0
        live = s.width * min(LIVE, self.trained + self.frozen) if s.stage == 3 else 0
        parts["encoders"] = guests(s) if s.device.kind == "gpu" else 0
        drawn = _drawing(s, min(SAMPLE_BATCH, _samples(s)))
        return Phase("samples", {**parts, "gradients": keep, "activations": drawn, "workspace": averaged + live})

    def export(self) -> Phase:
        """ZeRO-3 gathers every weight on every worker before it writes them."""
        whole = self.s.width * (self.trained + self.frozen)
        parts = {**self.resident(), "gradients": self.gradients, "activations": 0, "workspace": whole}
        return Phase("export", parts)

    def checkpoint(self) -> Phase:
        """On a CPU: a worker's share of a checkpoint is copied as a whole before it is written."""
        copied = -(-checkpoint_bytes(self.s) // self.s.workers)
        return Phase("checkpoint", {**self.resident(), "gradients": 0, "activations": 0, "workspace": copied})

    def host_bytes(self) -> int:
        """CPU memory per worker: fp32 weights, gradients and moments of its part, and offloaded weights."""
        state = 4 * self.mine + self.moments + 4 * self.mine if self.offload_optimizer else 0
        weights = self.s.width * self.s.share(self.trained + self.frozen, 3) if self.offload_parameters else 0
        return state + weights


def _offloaded(phase: Phase, host_bytes: int) -> dict[str, int]:
    """On a CPU: what would lie beside a GPU, once there is an engine."""
    return {} if phase.name == "preparation" or not host_bytes else {"offloaded": host_bytes}


def guests(s: RunShape) -> int:
    """Bytes of the VAE and of the text encoders that do not train: on a GPU only while they are asked."""
    parts = s.profile.components
    frozen = [ENCODERS[n] for n in (1, 2) if n not in s.recipe.tuning.text_encoders]
    return s.vae_width * parts["vae"].parameters + s.width * sum(parts[name].parameters for name in frozen)


def _samples(s: RunShape) -> int:
    prompts = len(s.recipe.evaluation.prompts) or 4
    return max(1, -(-prompts * s.recipe.evaluation.samples_per_prompt // s.workers))


def _drawing(s: RunShape, images: int) -> int:
    """Workspace of drawing images with guidance: the UNet on two samples an image, then the VAE one by one."""
    inference = s.profile.inference
    unet = inference["unet"].at(2 * images, s.latent_pixels, s.width)
    return max(unet, inference["vae_decode"].at(min(VAE_BATCH, images), s.latent_pixels, s.vae_width))


def _prepare(s: RunShape) -> Phase:
    """Filling the caches, and drawing class images with the untouched base."""
    profile, prior = s.profile, s.recipe.data.prior
    vae = profile.inference["vae_encode"].at(VAE_BATCH, s.latent_pixels, s.vae_width)
    text = max(profile.inference[name].at(CAPTION_BATCH, 0, s.width) for name in ENCODERS.values())
    drawn = _drawing(s, min(prior.batch_size, prior.num_class_images)) if prior is not None else 0
    unet = s.width * profile.components["unet"].parameters if prior is not None else 0
    encoders = s.vae_width * profile.components["vae"].parameters
    encoders += s.width * sum(profile.components[name].parameters for name in ENCODERS.values())
    parts = {"weights": unet, "encoders": encoders if s.device.kind == "gpu" else 0}
    return Phase("preparation", {**parts, "activations": max(vae, text, drawn)})


def _others(s: RunShape, phase: Phase) -> dict[str, int]:
    """On a CPU: the parts of the pipeline that are not counted in the phase's weights."""
    if phase.name == "preparation":
        parts = s.profile.components
        inside = ("vae", "text_encoder", "text_encoder_2")
        return {
            "weights": s.width * parts["unet"].parameters,
            "encoders": sum((s.vae_width if n == "vae" else s.width) * parts[n].parameters for n in inside),
        }
    return {"encoders": guests(s)}
