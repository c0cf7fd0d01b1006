"""The recipes that the tests train, and what they look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

from sdxl_ray.config import Recipe, load, override

#: Quick, and with everything in it that could differ between cuts: shuffles, dropout, flips, class pictures.
QUICK: dict[str, Any] = {
    "data.images": "subject:robot",
    "data.validation": "subject:robot/held_out",
    "data.subject": "sks robot",
    "data.resolution": 32,
    "data.flip": True,
    "data.caption_dropout": 0.2,
    "optim.steps": 20,
    "optim.warmup_steps": 2,
    "checkpoint.every": 5,
    "evaluation.every": 0,
    "evaluation.draws": 2,
    "evaluation.num_inference_steps": 2,
    "evaluation.prompts": ["a photo of sks robot"],
    "parallel.precision": "fp32",
}
PRIOR: dict[str, Any] = {
    "data.class_name": "robot",
    "data.prior.count": 4,
    "data.prior.num_inference_steps": 2,
}


def quick(name: str, **changes: Any) -> Recipe:
    """A shipped recipe cut down to seconds; keyword `optim__lr` is the setting `optim.lr`."""
    prior = PRIOR if "dreambooth" in name else {}
    return override(load(name), {**QUICK, **prior, **{k.replace("__", "."): v for k, v in changes.items()}})


def training_workers() -> list[psutil.Process]:
    """The processes of the training workers that this test session's cluster runs."""
    below = psutil.Process().children(recursive=True)
    return [p for p in below if p.is_running() and "TrainWorker" in " ".join(p.cmdline()[:1])]


def losses(folder: Path) -> list[str]:
    """The loss of every step of a run, as exact as a float is."""
    from sdxl_ray.records import read

    return [loss.hex() for loss in read(folder / "records", "steps")["loss"].to_pylist()]


def examples(folder: Path) -> list[tuple[int, int, str]]:
    """(step, index, view) of everything that a run has seen."""
    from sdxl_ray.records import read

    table = read(folder / "records", "examples")
    return list(zip(*(table[name].to_pylist() for name in ("step", "index", "picture")), strict=True))


def final_state(folder: Path) -> dict[str, Any]:
    """Every tensor of a run's last checkpoint: master weights, moments and averages by name."""
    from safetensors.torch import load_file

    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return {name: tensor for file in last.glob("*.safetensors") for name, tensor in load_file(file).items()}
