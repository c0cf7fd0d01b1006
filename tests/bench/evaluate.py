"""Images a second of the evaluator beside one-by-one generation, on the embedded base, in one run.

    python tests/bench/evaluate.py                       # 48 images, 20 steps, two passes
    python tests/bench/evaluate.py --workers 1 2 --images 96 --repeats 3

One by one: a plain diffusers pipeline, one prompt a call, all cores. The evaluator: batches of 8, in this process and
on Ray workers of one core each, from the begin of the first batch to the end of the last (models are loaded before).
Every pass draws each way once, in turn and back, so that a machine whose speed drifts slows all alike. Nothing here
fails on a time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine

from sdxl_ray.config.schema import Base
from sdxl_ray.display.table import Column, Table
from sdxl_ray.distributed.cluster import connected
from sdxl_ray.distributed.generation import draw_on_workers
from sdxl_ray.evaluation.evaluated_models import EvaluatedModel
from sdxl_ray.evaluation.image_store import GenerationSettings, ImageStore, draw
from sdxl_ray.evaluation.prompts import Prompts
from sdxl_ray.evaluation.runner import EvaluationPlan, EvaluationSettings
from sdxl_ray.evaluation.subject import Subject, load_photos
from sdxl_ray.io.collectives import SingleProcess
from sdxl_ray.models.pipeline import load_pipeline
from sdxl_ray.tiny import shipped

PLACES = (
    "",
    " on the beach",
    " in the snow",
    " in a forest",
    " in the city",
    " in the desert",
    " on a red carpet",
    " at sunset",
)


def main() -> None:
    """Measure and print one table."""
    options = _options()
    torch.set_num_threads(os.cpu_count() or 1)
    ways = [
        "one by one",
        "batches, this process",
        *(f"batches, {n} Ray worker{'s' * (n > 1)}" for n in options.workers),
    ]
    found: dict[str, list[float]] = {way: [] for way in ways}
    pipe = _plain()
    with connected(None, max(options.workers, default=1)):
        for turn in range(options.repeats):
            for number, way in list(enumerate(ways))[:: 1 if turn % 2 == 0 else -1]:
                with tempfile.TemporaryDirectory() as folder:
                    workers = options.workers[number - 2] if number >= 2 else 0
                    seconds = _one_by_one(pipe, options) if number == 0 else _evaluator(Path(folder), workers, options)
                found[way].append(options.images / seconds)
                print(f"pass {turn + 1}: {way} {found[way][-1]:.2f} images/s", file=sys.stderr, flush=True)
    slow = statistics.median(found[ways[0]])
    rows = [
        {"way": way, "rate": statistics.median(rates), "slowest": min(rates), "fastest": max(rates),
         "ratio": statistics.median(rates) / slow}
        for way, rates in found.items()
    ]  # fmt: skip
    about = {**machine(), "command": shlex.join(["python", *sys.argv])}
    print("\n".join(f"{name}: {value}" for name, value in about.items()), end="\n\n")
    numbers = [Column(key, key, "{:.2f}".format) for key in ("slowest", "fastest")]
    columns = [Column("way", "drawn", align="left"), Column("rate", "images/s", "{:.2f}".format), *numbers]
    print(Table([*columns, Column("ratio", "x one by one", "{:.2f}".format)], rows).text())
    print(f"\n{options.images} images of {options.steps} steps with guidance, medians of {options.repeats} passes.")
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="a way and pass, a multiple of 8 (default: 48)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument("--workers", type=int, nargs="*", default=[2], help="of Ray (default: 2)")
    parser.add_argument("--repeats", type=int, default=2, help="passes (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    options = parser.parse_args()
    if options.images < 8 or options.images % 8:
        parser.error(f"--images {options.images}: give a multiple of 8")
    return options


def _plain() -> Any:
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(shipped.folder(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _one_by_one(pipe: Any, options: argparse.Namespace) -> float:
    pipe("a robot", num_inference_steps=1)  # the first call of a pipeline is slower
    began = time.monotonic()
    for number in range(options.images):
        pipe(
            f"a photo of a robot{PLACES[number % 8]}",
            num_inference_steps=options.steps,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(number),
        )
    return time.monotonic() - began


def _evaluator(home: Path, workers: int, options: argparse.Namespace) -> float:
    prompts = Prompts(final=tuple(f"a photo of {{a_subject}}{place}" for place in PLACES))
    settings = EvaluationSettings(
        GenerationSettings(options.steps, 4.0), seeds=options.images // 8, class_images=1, draws=1
    )
    models, subject = [EvaluatedModel("base", Base())], Subject("robot", "robot", load_photos("subject:robot/held_out"))
    if workers:
        draw_on_workers(models, subject, prompts, settings, home=home, workers=workers)
    else:
        plan = EvaluationPlan.of(models, subject.class_name, prompts, settings)
        pipe = load_pipeline(models[0].base, None, dtype=settings.dtype, device=settings.device)
        draw(lambda: pipe, plan.jobs(models[0]), ImageStore(home / "pictures"), SingleProcess(), lambda *_: None)
    notes = [json.loads(line) for file in home.rglob("drawn-*.jsonl") for line in file.read_text().splitlines()]
    assert sum(len(note["keys"]) for note in notes) == options.images  # the class image is one of them
    return float(max(note["began"] + note["seconds"] for note in notes) - min(note["began"] for note in notes))


if __name__ == "__main__":
    main()
