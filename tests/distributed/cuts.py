"""Runs of two workers, and one worker group that trains them all: its start, the longest part, is paid once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.distributed.exported import exported
from sdxl_ray.distributed.ray_data import OnRow, encode_stream, scan_stream, streams
from sdxl_ray.distributed.train import DEFAULTS, worker_config
from sdxl_ray.io.storage import Storage
from sdxl_ray.training.run_directory import RunFolder, open_run, scan_images
from tests.distributed.conftest import quick


def _cut(recipe: str, stage: int | str, **changes: Any) -> Recipe:
    # A constant rate: runs of other lengths must not differ in their schedule.
    settings = {"optim__lr_scheduler": "constant_with_warmup", "parallel__workers": 2}
    return quick(recipe, parallel__zero_stage=stage, **settings, **changes)


#: The reference of each is one process with the whole batch at once.
CUTS = {
    "lora-data-parallel": _cut("tiny_lora", "auto", optim__steps=10),
    "lora-zero2": _cut("tiny_lora", 2, optim__steps=10),
    # Every layer is gathered over gloo: seconds a step where others use the cores.
    "lora-zero3": _cut("tiny_lora", 3, optim__steps=4),
    "dreambooth-accumulated-checkpointed": _cut(
        "tiny_dreambooth", 2, parallel__micro_batch=2, parallel__gradient_checkpointing=True, optim__steps=6
    ),
}
#: What those nearly prove.
MORE = {
    **{f"lora-zero{stage}": _cut("tiny_lora", stage) for stage in (0, 1)},
    # Where UNet and text encoders move at once, what rounding differs grows fivefold in the four steps after these.
    **{f"dreambooth-zero{stage}": _cut("tiny_dreambooth", stage, optim__steps=12) for stage in (0, 1, 2)},
    "dreambooth-zero3": _cut("tiny_dreambooth", 3, optim__steps=8),
    "lora-accumulated": _cut("tiny_lora", 2, parallel__micro_batch=1),
    "dreambooth-text-offloaded": _cut(
        "tiny_dreambooth", 2, tuning__text_encoders=[1, 2], optim__ema_decay=0.9, parallel__offload_optimizer=True
    ),
    "dreambooth-text-zero3": _cut(
        "tiny_dreambooth", 3, tuning__text_encoders=[1, 2], optim__ema_decay=0.9, optim__steps=8
    ),
}

#: So small a rate that nothing is learnt: which look is best is up to the last bit, and none ends the run.
STILL: dict[str, Any] = {
    "optim__lr": 1e-12,
    "optim__steps": 2,
    "optim__ema_decay": 0.9,
    "optim__lr_scheduler": "constant",
    "optim__warmup_steps": 0,
    "checkpoint__every": 50,
    "evaluation__every": 1,
    "evaluation__num_inference_steps": 2,
    "evaluation__guidance_scale": 4.0,
    "evaluation__patience": 0,
    "evaluation__class_images": 2,
    "evaluation__score_prompts": 2,
}
SCORED = quick("tiny_lora", parallel__workers=2, parallel__zero_stage=2, **STILL)

#: Every step makes what is no number.
DIVERGING = quick(
    "tiny_lora",
    parallel__workers=2,
    optim__lr=1e30,
    optim__max_grad_norm=None,
    optim__lr_scheduler="constant",
    optim__warmup_steps=0,
)


@dataclass(frozen=True)
class Cut:
    """A run that was trained: what was told of it, and what it ended of, if it did."""

    recipe: Recipe
    run: RunFolder
    rows: list[dict[str, Any]]
    fatal_error: Exception | None


def streamed(source: Path) -> Recipe:
    """Training on a Parquet file of captioned images, which goes through Ray Data."""
    captioned = {"data__images": str(source), "data__validation": None, "data__subject": None}
    return quick("tiny_lora", parallel__workers=[1, 2], optim__steps=6, checkpoint__every=6, **captioned)


def trained(recipes: dict[str, Recipe], storage: Path) -> dict[str, Cut]:
    """Every recipe of a table, trained by one worker group of two."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from sdxl_ray.distributed.progress_channel import fatal_error, open_channel

    # A storage each: in a cache that is shared, what another batch has encoded may differ in its last bit.
    places = {name: Storage.of(storage / name) for name in recipes}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in recipes}
    runs = {name: _opened(recipe, places[name], name, rows[name].append) for name, recipe in recipes.items()}
    channels = {name: open_channel() for name in recipes}
    plain = [worker_config(recipe, runs[name], places[name], channels[name]) for name, recipe in recipes.items()]
    trainer = TorchTrainer(
        _one_after_another,
        train_loop_config={"runs": plain},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="cuts", storage_path=str(storage / "ray")),
    )
    with exported(DEFAULTS):
        trainer.fit()
    for name, channel in channels.items():
        rows[name] += ray.get(channel.take.remote())
    return {name: Cut(recipes[name], run, rows[name], fatal_error(channels[name])) for name, run in runs.items()}


def _opened(recipe: Recipe, place: Storage, name: str, on_row: OnRow) -> RunFolder:
    """As a launch opens a run, with the images of one that streams encoded."""
    if not streams(recipe):
        return open_run(recipe, place.root, name, scan_images(recipe))
    run = open_run(recipe, place.root, name, scan_stream(recipe, on_row))
    encode_stream(recipe, run, place, 0, on_row)
    return run


def _one_after_another(config: dict[str, Any]) -> None:
    from sdxl_ray.distributed.worker import train_worker

    for one in config["runs"]:
        train_worker(one)
