"""How many ranks does a LoRA need to keep what full tuning learnt? Extractions of six subjects' models, scored.

    OMP_NUM_THREADS=1 python tests/bench/extraction.py --work /tmp/extraction

For each subject: full tuning (`tiny_dreambooth`, 300 steps), LoRAs of its difference from the base at every rank, and
scores of the base, the full model and every LoRA under the same prompts, seeds and held-out photos. What is there
already is not done again, so an interrupted call goes on; `--subjects` may name some, and other calls the others.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from machine import machine

from sdxl_ray.config.recipe import Recipe, load, override
from sdxl_ray.display.table import Column, Table
from sdxl_ray.distributed.evaluate import evaluate_request
from sdxl_ray.distributed.train import launch
from sdxl_ray.evaluation.aggregate import Pool
from sdxl_ray.evaluation.evaluated_models import BASE
from sdxl_ray.evaluation.request import EvaluationRequest, open_request
from sdxl_ray.evaluation.runner import EvaluationResult
from sdxl_ray.formats.extraction import rank_rules
from sdxl_ray.io.records import ALL_SUBJECTS
from sdxl_ray.models.extraction import ALL, ExtractionResult, extract
from sdxl_ray.models.full_model import FullModel

Row = dict[str, Any]
SUBJECTS = ("robot", "frog", "turtle", "car", "mushroom", "teapot")
FULL = "full"
METRICS = ("dino_i", "clip_t", "pres", "class_kid", "div")
#: Of what full tuning added to the base's subject fidelity, the share that counts as kept.
KEPT = 0.95


def recipe_of(subject: str) -> Recipe:
    """One of the runs of the experiment `study`, arm `dreambooth`."""
    changes = {
        "data.images": f"subject:{subject}",
        "data.validation": f"subject:{subject}/held_out",
        "data.subject": f"sks {subject}",
        "data.class_name": subject,
        "evaluation.every": 0,
        "optim.steps": 300,
        "checkpoint.every": 300,
        "parallel.engine": "local",
        "parallel.workers": 1,
    }
    return override(load("tiny_dreambooth"), changes)


def study(subject: str, options: argparse.Namespace) -> tuple[ExtractionResult, EvaluationResult]:
    """Train, extract, score."""
    run = launch(recipe_of(subject), storage=options.work / "runs", name=subject)
    rules = rank_rules(options.ranks, options.energy)
    out = options.work / "extracted" / subject
    found = extract(FullModel.open(run.artifact), rules, out)
    sources = [BASE, f"{FULL}={run.artifact}", *(f"{rule.name}={out / rule.name}" for rule in rules)]
    request = EvaluationRequest(sources, seeds=options.seeds, class_images=options.class_images)
    _, scores = evaluate_request(open_request(request), options.work / "scores" / subject)
    print(f"{subject}: {_verdict({r['model']: r for r in scores.scores if r['metric'] == 'dino_i'})}", file=sys.stderr)
    return found, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--ranks", default="1,2,4,8,16,32,64,full")
    parser.add_argument("--energy", default="0.95")
    parser.add_argument("--seeds", type=int, default=2, help="images per final prompt")
    parser.add_argument("--class-images", type=int, default=8, help="images of the plain class")
    options = parser.parse_args()
    done = {subject: study(subject, options) for subject in options.subjects}
    names = [rule.name for rule in rank_rules(options.ranks, options.energy)]
    pool = Pool({subject: scores for subject, (_, scores) in done.items()}, {name: (name,) for name in (FULL, *names)})
    rows, over = pool.scores(), ALL_SUBJECTS if len(done) > 1 else options.subjects[0]
    print("\n".join(f"{name}: {words}" for name, words in machine().items()))
    print(f"command: python tests/bench/extraction.py {' '.join(sys.argv[1:])}\n")
    print(_table(rows, over, [found for found, _ in done.values()]))
    print(f"\nsubject fidelity (dino_i) minus the full model's, paired, 95 % intervals, {over}")
    print(_differences(pool.differences(), over, names))
    print(f"\nleast rank that keeps {KEPT:.0%} of what full tuning added to the base's dino_i")
    for subject in dict.fromkeys([*options.subjects, over]):
        print(f"  {subject}: {_verdict(_of(rows, subject, 'dino_i'))}")
    for place, (found, _) in enumerate(done.values()):
        lacking = [row for row in found.lost if row["kind"] in ("biases", "norms")]
        lost = ", ".join(f"{row['kind']} {row['share']:.2%}" for row in lacking)
        print(f"  {options.subjects[place]}: of the squared difference, in no LoRA: {lost}")


def _table(rows: Sequence[Row], over: str, found: Sequence[ExtractionResult]) -> str:
    """A row a model: size and residual as means over the subjects, scores with their intervals, shares of the gain."""
    at = {(row["model"], row["metric"]): row for row in rows if row["subject"] == over and "@" not in row["split"]}
    made: list[Row] = []
    for model in dict.fromkeys(model for model, _ in at):
        sizes = [row for one in found for row in one.rows if row["name"] == model and row["part"] == ALL]
        mean = {name: sum(row[name] for row in sizes) / len(sizes) for name in _SIZES} if sizes else {}
        share = _share(_of(rows, over, "dino_i"), model)
        scores = {metric: _score(at.get((model, metric))) for metric in METRICS}
        made.append({"model": model, **mean, **scores, "kept": share})
    columns = [
        Column("model", "model"),
        Column("parameters", "parameters", lambda count: f"{count:,.0f}"),
        Column("diffusers_bytes", "MB, fp32", lambda size: f"{size / 1e6:.2f}"),
        Column("residual", "residual", "{:.3f}".format),
        *(Column(metric, metric, align="left") for metric in METRICS),
        Column("kept", "of full's gain", "{:.0%}".format),
    ]
    return Table(columns, made).text()


_SIZES = ("parameters", "diffusers_bytes", "residual")


def _differences(rows: Sequence[Row], over: str, names: Sequence[str]) -> str:
    at = {
        row["model"]: row
        for row in rows
        if (row["against"], row["metric"], row["subject"]) == (FULL, "dino_i", over)
    }  # fmt: skip
    return "\n".join(f"  {name}: {_score(at[name], '+')}" for name in names if name in at)


def _of(rows: Sequence[Row], subject: str, metric: str) -> dict[str, Row]:
    return {row["model"]: row for row in rows if (row["subject"], row["metric"]) == (subject, metric)}


def _share(scores: Mapping[str, Row], model: str) -> float | None:
    """Of the full model's gain over the base; None for the references."""
    if model in (BASE, "real", "other") or model not in scores:
        return None
    base, full = scores[BASE]["value"], scores[FULL]["value"]
    return float((scores[model]["value"] - base) / (full - base))


def _verdict(scores: Mapping[str, Row]) -> str:
    ranks = {model: share for model in scores if model.startswith("rank-") and (share := _share(scores, model))}
    enough = [model for model, share in ranks.items() if share >= KEPT]
    best = max(ranks, key=lambda model: ranks[model])
    said = f"{enough[0]} ({ranks[enough[0]]:.0%})" if enough else f"none; the best is {best} ({ranks[best]:.0%})"
    raw = [model for model in ranks if scores[model]["value"] >= KEPT * scores[FULL]["value"]]
    return f"{said}; of dino_i itself: {raw[0] if raw else 'none'}"


def _score(row: Row | None, sign: str = "") -> str | None:
    if row is None or row["value"] is None:
        return None
    value, low, high = (None if row[k] is None else f"{row[k]:{sign}.3f}" for k in ("value", "low", "high"))
    return value if low is None else f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
