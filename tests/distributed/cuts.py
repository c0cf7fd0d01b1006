"""Runs of two workers, and one worker group that trains them all: its start, the longest part, is paid once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdxl_ray.config import Recipe
from sdxl_ray.core.runfolder import RunFolder, open_run, scan_pictures
from sdxl_ray.distributed.exported import exported
from sdxl_ray.distributed.train import POLL, worker_config
from sdxl_ray.storage import Storage
from tests.distributed.conftest import quick


def _cut(recipe: str, stage: int, **changes: Any) -> Recipe:
    # A constant rate: runs of other lengths must not differ in their schedule.
    settings = {"optim__schedule": "constant_with_warmup", "parallel__workers": 2}
    return quick(recipe, parallel__zero_stage=stage, **settings, **changes)


#: The reference of each is one process with the whole batch at once.
CUTS = {
    **{f"lora-zero{stage}": _cut("tiny_lora", stage) for stage in (0, 2)},
    # Every layer is gathered over gloo: seconds a step where others use the cores.
    "lora-zero3": _cut("tiny_lora", 3, optim__steps=4),
    # Where UNet and text encoders move at once, what rounding differs grows fivefold in the four steps after these.
    "dreambooth-accumulated-checkpointed": _cut(
        "tiny_dreambooth", 2, parallel__micro_batch=2, parallel__gradient_checkpointing=True, optim__steps=12
    ),
}
#: What those nearly prove.
MORE = {
    "lora-zero1": _cut("tiny_lora", 1),
    **{f"dreambooth-zero{stage}": _cut("tiny_dreambooth", stage, optim__steps=12) for stage in (0, 1, 2)},
    "dreambooth-zero3": _cut("tiny_dreambooth", 3, optim__steps=8),
    "lora-accumulated": _cut("tiny_lora", 2, parallel__micro_batch=1),
    "dreambooth-text-offloaded": _cut(
        "tiny_dreambooth", 2, tuning__text_encoders=[1, 2], optim__ema=0.9, parallel__offload_optimizer=True
    ),
    "dreambooth-text-zero3": _cut("tiny_dreambooth", 3, tuning__text_encoders=[1, 2], optim__ema=0.9, optim__steps=8),
}

#: So small a rate that nothing is learnt: which look is best is up to the last bit, and none ends the run.
STILL: dict[str, Any] = {
    "optim__lr": 1e-12,
    "optim__steps": 2,
    "optim__ema": 0.9,
    "optim__schedule": "constant",
    "optim__warmup_steps": 0,
    "checkpoint__every": 50,
    "evaluation__every": 1,
    "evaluation__num_inference_steps": 2,
    "evaluation__guidance_scale": 4.0,
    "evaluation__patience": 0,
    "evaluation__class_pictures": 2,
    "evaluation__score_prompts": 2,
}
SCORED = quick("tiny_lora", parallel__workers=2, parallel__zero_stage=3, **STILL)


@dataclass(frozen=True)
class Cut:
    """A run that was trained, and the rows that its first worker told."""

    run: RunFolder
    rows: list[dict[str, Any]]


def trained(recipes: dict[str, Recipe], storage: Path) -> dict[str, Cut]:
    """Every recipe of a table, trained by one worker group of two."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from sdxl_ray.distributed.mailbox import open_mailbox

    place = Storage.of(storage)
    runs = {name: open_run(recipe, storage, name, scan_pictures(recipe)) for name, recipe in recipes.items()}
    mailboxes = {name: open_mailbox() for name in recipes}
    plain = [worker_config(recipe, runs[name], place, mailboxes[name]) for name, recipe in recipes.items()]
    trainer = TorchTrainer(
        _one_after_another,
        train_loop_config={"runs": plain},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="cuts", storage_path=str(storage / "ray")),
    )
    with exported(POLL):
        trainer.fit()
    return {name: Cut(run, ray.get(mailboxes[name].take.remote())) for name, run in runs.items()}


def _one_after_another(config: dict[str, Any]) -> None:
    from sdxl_ray.distributed.worker import train_worker

    for one in config["runs"]:
        train_worker(one)
