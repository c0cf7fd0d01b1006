"""An engine of ours under the real training loop, without a run folder: random weights, filled caches, no checkpoints.

Everything between the parts and the loop is put together as a run does it; what a run writes is left out, since full
SDXL state is tens of gigabytes for every row of a table.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from arms import Arm, recipe
from plain import WIDTHS
from randomparts import random_pipeline

from sdxl_ray.config.layout import zero_stage
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.data.batch_sampler import BatchSampler
from sdxl_ray.data.latents import LatentSource, TextSource
from sdxl_ray.data.tensor_cache import TensorCache, namespace
from sdxl_ray.models.adapters import TUNINGS, Trainable
from sdxl_ray.models.denoiser import Denoiser
from sdxl_ray.models.noise_schedule import Diffusion
from sdxl_ray.training.batch import BatchEncoder
from sdxl_ray.training.engine import LocalEngine, TrainingEngine
from sdxl_ray.training.loop import TrainingLoop, accumulation_of, train
from sdxl_ray.training.memory_stats import peak_bytes
from sdxl_ray.training.run_directory import scan_images


class NoCheckpoints:
    """A store that keeps nothing."""

    def save(self, step: int, meta: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Nothing is kept."""


def run(arm: Arm, folder: Path) -> dict[str, Any]:
    """Train `arm`; seconds, loss and finiteness, peak bytes and trained scalars."""
    started = time.monotonic()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    settings = recipe(arm)
    pipe = random_pipeline(arm.shape, device, WIDTHS[arm.precision])
    sampler = BatchSampler(
        scan_images(settings).train,
        (),
        settings.data,
        resolution=settings.data.resolution or 0,
        batch_size=arm.batch,
        seed=settings.seed,
    )
    parts = _parts(settings, pipe, sampler, folder)
    denoiser = Denoiser(pipe.unet)
    del pipe
    gc.collect()
    trainable = TUNINGS[type(settings.tuning)].prepare(denoiser, settings.tuning, settings.seed)
    if arm.checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
    if arm.compiled:
        denoiser.unet.compile_repeated_blocks()
    engine = _engine(settings, denoiser, trainable, device, folder)
    count = trainable.count
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rows: list[dict[str, Any]] = []
    training = TrainingLoop(
        settings,
        engine,
        parts,
        sampler,
        held_out=(),
        store=NoCheckpoints(),  # type: ignore[arg-type]  # the one method that the loop calls
        report=lambda row: rows.append(row) if row["kind"] == "step" else None,
        look=lambda step: None,
    )
    began = time.monotonic()
    train(training)
    return {
        "seconds": [row["seconds"] for row in rows],
        "losses": [row["loss"] for row in rows],
        "finite": all(bool(engine.local(p).isfinite().all()) for _, p in trainable.named),
        "peak_bytes": peak_bytes(device),
        "trainable": count,
        "start_s": began - started,
        "device": str(device),
    }


def _parts(settings: Recipe, pipe: Any, sampler: BatchSampler, folder: Path) -> BatchEncoder:
    """Parts whose caches are full; the VAE and the text encoders are not needed after that."""
    images = scan_images(settings).train
    kind = {"base": "random", "code": 0}
    cache, one, two = (TensorCache(folder, namespace(name, **kind)) for name in ("latents", "text1", "text2"))
    latents = LatentSource(pipe.vae, lambda view: images.read(view.image), cache)
    text = (
        TextSource(pipe.tokenizer, pipe.text_encoder, False, one),
        TextSource(pipe.tokenizer_2, pipe.text_encoder_2, True, two),
    )
    for view in sampler.views():
        latents.fill([view])
    for source in text:
        source.fill(sampler.captions())
    # The sources that stay behind read their caches only, and hold no model.
    return BatchEncoder(
        recipe=settings,
        diffusion=Diffusion.of(pipe.scheduler.config, settings.objective),
        vae_config=pipe.vae.config,
        tokenizers=(pipe.tokenizer, pipe.tokenizer_2),
        latents=LatentSource(None, lambda view: images.read(view.image), cache),
        text=(TextSource(None, None, False, one), TextSource(None, None, True, two)),
        zero_empty_prompt=True,
    )


def _engine(
    settings: Recipe, denoiser: Denoiser, trainable: Trainable, device: torch.device, folder: Path
) -> TrainingEngine:
    width = WIDTHS[settings.parallel.precision]
    accumulation = accumulation_of(settings, settings.optim.batch_size, 1)
    optim, parallel = settings.optim, settings.parallel
    stage = zero_stage(settings, 1, half=WIDTHS[settings.parallel.precision].itemsize == 2)
    if stage is None:
        return LocalEngine(denoiser, trainable, optim, accumulation=accumulation, device=device, precision=width)
    _join(device, folder)
    from sdxl_ray.distributed.collectives import TorchGroup
    from sdxl_ray.distributed.zero import ZeroEngine

    return ZeroEngine(
        denoiser,
        trainable,
        optim,
        parallel,
        stage=stage,
        micro_batch=-(-optim.batch_size // accumulation),
        accumulation=accumulation,
        device=device,
        precision=width,
        group=TorchGroup(),
    )


def _join(device: torch.device, folder: Path) -> None:
    """A group of one process, as Ray Train would set it up: no Ray is needed where there is one GPU."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=0, world_size=1, init_method=f"file://{folder / 'group'}")
