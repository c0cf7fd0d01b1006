"""Does the checkpoint that a run's own scores chose beat the last one, on photos and prompts that chose nothing?

    python tests/bench/best_last.py --work /tmp/best-last --subjects mushroom penguin elephant --seeds 0 1 2

Each run trains too long on purpose (DreamBooth without class images). It scores itself on the tune split by two
of the subject's held-out photos and exports its best step; the last step's weights are exported too, and both are
judged with the base by the other three photos, under the prompts and seeds of the final split.
What is there already is not done again, so that an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
from machine import machine

from sdxl_ray.config.recipe import Recipe, load, override
from sdxl_ray.data.dataset import scan, split
from sdxl_ray.display.table import Column, Table
from sdxl_ray.distributed.train import RunResult, launch
from sdxl_ray.evaluation.defaults import settings_of
from sdxl_ray.evaluation.evaluated_models import BASE, REAL, EvaluatedModel
from sdxl_ray.evaluation.prompts import load_prompts
from sdxl_ray.evaluation.runner import EvaluationResult, evaluate
from sdxl_ray.evaluation.subject import Photo, Subject, halves, photos_of
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.metrics.counted_random import counted
from sdxl_ray.metrics.quality import References, quality
from sdxl_ray.tiny._build.catalog import SUBJECTS
from sdxl_ray.training.run_directory import open_run, scan_images

Row = dict[str, Any]
METRICS = ("quality", "dino_i", "clip_t", "pres", "class_kid", "prior_loss", "div")
RESAMPLES = 10_000


def recipe_of(subject: str, seed: int, options: argparse.Namespace) -> Recipe:
    """DreamBooth without class images, too long: what it learns last it learns at the class's cost."""
    steps = options.steps
    name = SUBJECTS[subject].class_name
    changes = {
        "data.images": f"subject:{subject}",
        "data.validation": f"subject:{subject}/held_out",
        "data.subject": f"sks {name}",
        "data.class_name": name,
        "data.prior": None,
        "optim.steps": steps,
        "optim.lr": options.lr,
        "checkpoint.every": steps,
        "evaluation.every": options.every,
        "evaluation.num_inference_steps": options.drawing_steps,
        "evaluation.prompts": [f"a photo of sks {name}"],
        "evaluation.patience": 0,
        "evaluation.split": "tune",  # half of the photos choose the checkpoint
        "parallel.engine": "local",
        "parallel.workers": 1,
        "seed": seed,
    }
    return override(load("tiny_dreambooth"), changes)


def judging_photos(recipe: Recipe) -> tuple[Photo, ...]:
    """The held-out photos that choose no checkpoint."""
    _, held_out = split(scan(recipe.data), recipe.data)
    return photos_of(halves(held_out)[1])


def last_of(result: RunResult, recipe: Recipe, storage: Path) -> RunResult:
    """The last step's artifact: a run without scores that finds the last checkpoint and has nothing left to train."""
    plain = override(recipe, {"evaluation.scores": "never"})
    name = f"{result.folder.name}-last"
    run = open_run(plain, storage, name, scan_images(plain))
    checkpoint = f"checkpoints/step-{recipe.optim.steps:07d}"
    if not (run.folder / checkpoint).exists():
        shutil.copytree(result.folder / checkpoint, run.folder / checkpoint)
    return launch(plain, storage=storage, name=name)


def judge(
    subject: str, recipe: Recipe, best: RunResult, last: RunResult, photos: Sequence[Photo], home: Path, seeds: int
) -> EvaluationResult:
    """The base, the best and the last on the final split."""
    design = SUBJECTS[subject]
    models = [
        EvaluatedModel(BASE, recipe.base),
        EvaluatedModel("last", recipe.base, Artifact.open(last.artifact), recipe.data.subject),
        EvaluatedModel("best", recipe.base, Artifact.open(best.artifact), recipe.data.subject),
    ]
    judged = Subject(subject, design.class_name, tuple(photos))
    settings = replace(settings_of(recipe), seeds=seeds)
    found = evaluate(models, judged, load_prompts("tiny"), settings, home=home)
    assert found is not None
    return found


def scores_of(found: EvaluationResult) -> dict[str, dict[str, float]]:
    """Model -> metric -> value, quality among them."""
    by: dict[str, dict[str, Any]] = {}
    for row in found.scores:
        by.setdefault(row["model"], {})[row["metric"]] = (row["value"], row["low"], row["high"])
    base = {name: score[0] for name, score in by[BASE].items()}
    references = References(base, by[REAL]["dino_i"][0], "tiny-clip")
    for model in ("best", "last"):
        own = {name: score for name, score in by[model].items() if not name.endswith("_gain")}
        by[model]["quality"] = quality(own, references)
    return {model: {name: score[0] for name, score in scores.items()} for model, scores in by.items()}


def interval(values: list[float]) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean, whole runs drawn again."""
    rng = counted(0, "best against last", len(values))
    drawn = rng.choice(np.array(values), (RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--subjects", nargs="+", default=["mushroom", "penguin", "elephant"], choices=sorted(SUBJECTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--drawing-steps", type=int, default=12, help="denoising steps of every image")
    parser.add_argument("--final-seeds", type=int, default=2, help="images per final prompt")
    options = parser.parse_args()
    rows: list[Row] = []
    differences: dict[str, list[float]] = {name: [] for name in METRICS}
    for seed in options.seeds:
        for subject in options.subjects:
            recipe = recipe_of(subject, seed, options)
            judging = judging_photos(recipe)
            best = launch(recipe, storage=options.work / "runs", name=f"{subject}-{seed}")
            last = last_of(best, recipe, options.work / "runs")
            home = options.work / f"judged-{subject}"
            found = judge(subject, recipe, best, last, judging, home, options.final_seeds)
            scores = scores_of(found)
            overfitted = best.summary["overfitting"]
            row: Row = {
                "subject": subject,
                "seed": seed,
                "best_step": best.summary["best_step"],
                "overfits": overfitted["step"] if overfitted else None,
            }
            for name in METRICS:
                row |= {f"{name}_best": scores["best"][name], f"{name}_last": scores["last"][name]}
                differences[name].append(scores["best"][name] - scores["last"][name])
            rows.append(row)
            print(f"{subject} {seed}: {row}", file=sys.stderr, flush=True)
    print("\n".join(f"{name}: {words}" for name, words in machine().items()))
    print(f"command: python tests/bench/best_last.py {' '.join(sys.argv[1:])}\n")
    columns = [Column("subject", "subject"), Column("seed", "seed"), Column("best_step", "best step")]
    columns.append(Column("overfits", "overfits at"))
    for name in ("quality", "dino_i", "clip_t", "class_kid", "prior_loss"):
        columns += [Column(f"{name}_{which}", f"{name} {which}", "{:.3f}".format) for which in ("best", "last")]
    print(Table(tuple(columns), rows).text())
    print(f"\nbest - last over {len(rows)} runs, mean [95 %, runs drawn again]")
    for name, values in differences.items():
        low, high = interval(values)
        print(f"  {name:10s} {statistics.fmean(values):+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
