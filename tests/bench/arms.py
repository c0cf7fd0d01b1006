"""The arms of the training benchmark: which settings each row has, and the recipe that gives ours the same work.

Two sets. `embedded`: real runs on the embedded base beside the plain loop, as a user starts them. `gpu-like`: engines
alone over a grid of settings, with random weights, in true SDXL shapes or in the embedded base's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Literal

from sdxl_ray.config.recipe import Recipe, parse

Shape = Literal["tiny", "sdxl"]
Precision = Literal["fp32", "bf16", "fp16"]

PROMPT = "a photo of sks robot"
GRID = "gpu-like"
LR = {"lora": 1e-4, "full": 1e-5}
PIXELS = {"tiny": 64, "sdxl": 1024}
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")

#: Only the shapes of this base are used: nothing is downloaded.
_SDXL = {
    "id": "stabilityai/stable-diffusion-xl-base-1.0",
    "revision": "462165984030d82259a11f4367a4eed129e94a7b",
}


@dataclass(frozen=True)
class Arm:
    """One row. how: `plain` (diffusers + PEFT + Accelerate), `run` (a whole run of ours), `engine` (its loop alone).

    cached: latents and text states were computed before the first step. steps: timed ones and `warmup` before them.
    """

    name: str
    how: Literal["plain", "run", "engine"]
    tuning: Literal["lora", "full"]
    shape: Shape = "tiny"
    engine: Literal["local", "zero"] = "local"
    stage: Literal[0, 1, 2, 3] = 2
    workers: int = 1
    cached: bool = False
    batch: int = 4
    rank: int = 16
    checkpointing: bool = False
    compiled: bool = False
    precision: Precision = "fp32"
    steps: int = 30
    warmup: int = 5
    images: str = "subject:robot"

    @property
    def all_steps(self) -> int:
        """Steps to run."""
        return self.warmup + self.steps

    @property
    def label(self) -> str:
        """What trains the row, without its settings."""
        if self.how == "plain":
            return "plain loop"
        if self.engine == "local":
            return "LocalEngine"
        where = f"Ray Train, {self.workers} worker{'s' if self.workers > 1 else ''}, " if self.how == "run" else ""
        return f"{where}ZeRO-{self.stage}"


def embedded(batch: int, rank: int, precision: Precision) -> Iterator[Arm]:
    """The rows of the embedded base: for each tuning the plain loop, then ours, each without and with caches."""
    for tuning in ("lora", "full"):
        same = Arm(tuning, "plain", tuning, batch=batch, rank=rank, precision=precision)
        for cached in (False, True):
            tail = "-cached" if cached else ""
            yield replace(same, name=f"{tuning}/plain{tail}", cached=cached)
            yield replace(same, name=f"{tuning}/local{tail}", how="run", cached=cached)
            for workers in (1, 2):
                name = f"{tuning}/ray{workers}{tail}"
                yield replace(same, name=name, how="run", engine="zero", workers=workers, cached=cached)


def grid(shape: Shape, rank: int, precision: Precision) -> Iterator[Arm]:
    """The rows of engines alone: the plain loop, the local engine, and ZeRO 2 and 3 with every option on and off."""
    for tuning in ("lora", "full"):
        for batch in (1, 8):
            home = f"{GRID}/{tuning}/b{batch}"
            same = Arm(home, "plain", tuning, shape, batch=batch, rank=rank, precision=precision)
            yield replace(same, name=f"{home}/plain")
            ours = replace(same, how="engine", cached=True)
            yield replace(ours, name=f"{home}/local")
            for stage in (2, 3):
                for checkpointing in (False, True):
                    for compiled in (False, True):
                        words = [f"zero{stage}", *(["checkpointed"] * checkpointing), *(["compiled"] * compiled)]
                        yield replace(
                            ours,
                            name=f"{home}/{'-'.join(words)}",
                            engine="zero",
                            stage=stage,
                            checkpointing=checkpointing,
                            compiled=compiled,
                        )


def chosen(arms: Sequence[Arm], patterns: Sequence[str]) -> list[Arm]:
    """The arms whose name, or the start of it, matches one of the patterns (`lora/*`, `gpu-like`, `*/b1/zero2`)."""
    return [arm for arm in arms if any(fnmatch(arm.name, p) or arm.name.startswith(f"{p}/") for p in patterns)]


def recipe(arm: Arm) -> Recipe:
    """The recipe of an arm of ours: the plain loop's work, evaluated as rarely as a recipe allows."""
    tuning = {"kind": "lora", "rank": arm.rank, "target_modules": TARGETS} if arm.tuning == "lora" else {"kind": "full"}
    return parse(
        {
            "base": {"id": "tiny"} if arm.shape == "tiny" else _SDXL,
            "data": {
                "images": arm.images,
                "prompt": PROMPT,
                "captions": "prompt",
                "holdout": 0,
                "resolution": PIXELS[arm.shape],
                "buckets": False,
                "cache_latents": arm.cached,
                "cache_text": arm.cached,
            },
            "tuning": tuning,
            "optim": {"lr": LR[arm.tuning], "steps": arm.all_steps, "batch_size": arm.batch},
            "parallel": {
                "engine": arm.engine,
                "workers": arm.workers,
                "zero_stage": arm.stage,
                "precision": arm.precision,
                "gradient_checkpointing": arm.checkpointing,
                "compile": arm.compiled,
            },
            "checkpoint": {"every": arm.all_steps, "keep": 1, "keep_best": False},
            "evaluation": {"every": 0, "prompts": [PROMPT], "num_inference_steps": 1, "guidance_scale": 1.0},
        },
        arm.name,
    )
