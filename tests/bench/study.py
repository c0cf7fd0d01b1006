"""Comparisons over many subjects and seeds: training them on all cores, and their tables from records alone.

    python tests/bench/study.py --train 2 study photos  # optional: in two processes of one thread
    sdxl-ray compare study && sdxl-ray compare photos   # train what is missing, draw, score; cut it at any time
    python tests/bench/study.py runs/study-comparison runs/photos-comparison

Scores again after a change of the encoders: the same two `compare`. What is trained and drawn already stays.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from machine import machine

from sdxl_ray.config.experiment import ArmRun, load_experiment
from sdxl_ray.display.table import Column, Table
from sdxl_ray.io.records import ALL_SUBJECTS, read
from sdxl_ray.report.metrics import METRICS, REFERENCES
from sdxl_ray.report.source import ComparisonCard

Row = dict[str, Any]

BASE, FINAL, GAIN = "base", "final", "_gain"
#: Told subject by subject: how like, how obedient, how much leaked.
_EACH = ("dino_i", "clip_t", "pres")


def main() -> None:
    """Train experiments, or print every comparison's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="+", metavar="COMPARISON", help="<storage>/<experiment>-comparison; or experiments"
    )
    parser.add_argument("--train", type=int, metavar="N", help="train the experiments in N processes")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="where run folders and caches are")
    options = parser.parse_args()
    if options.train is not None:
        _train(options) if options.part is None else _train_part(options)
        return
    for folder in map(Path, options.names):
        if not (folder / "comparison.json").is_file():
            sys.exit(f"{str(folder)!r} is no comparison: give <storage>/<experiment>-comparison")
        print(_tables(folder), end="\n\n")
    print("\n".join(f"{name}: {value}" for name, value in machine().items()))


def _train(options: argparse.Namespace) -> None:
    """Start the processes; the first failure is the exit code."""
    words = [sys.executable, __file__, *options.names, "--train", str(options.train), "--storage", str(options.storage)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    parts = [subprocess.Popen([*words, "--part", str(part)], env=alone) for part in range(options.train)]
    sys.exit(next((code for part in parts if (code := part.wait())), 0))


def _train_part(options: argparse.Namespace) -> None:
    """Train every N-th run; what two experiments share is trained once."""
    from sdxl_ray.distributed.train import launch
    from sdxl_ray.training.run_directory import finished_run

    runs: dict[str, tuple[str, ArmRun]] = {}
    for name in options.names:
        for run in load_experiment(name).runs({}):
            runs.setdefault(run.recipe.identity, (name, run))
    for name, run in list(runs.values())[options.part :: options.train]:
        if finished_run(run.recipe, options.storage) is None:
            began = time.monotonic()
            launch(run.recipe, storage=options.storage, name=run.named(Path(name).stem))
            print(f"{run.named(Path(name).stem)}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _tables(folder: Path) -> str:
    card = ComparisonCard.model_validate(json.loads((folder / "comparison.json").read_text()))
    scores = [row for row in read(folder / "records", "scores").to_pylist() if row["model"] in _known(card)]
    differences = read(folder / "records", "differences").to_pylist()
    subjects = sorted({row["subject"] for row in scores} - {ALL_SUBJECTS})
    over = ALL_SUBJECTS if len(subjects) > 1 else subjects[0]
    runs = sum(len(arm.runs) for arm in card.arms.values())
    main_rows = [row for row in scores if row["split"] == FINAL]
    plain = [row for row in main_rows if not row["metric"].endswith(GAIN)]
    encoders = {row["metric"]: row["encoder"] for row in plain if row["encoder"]}
    lines = [
        f"{card.name}: {card.experiment}. {runs} runs, {len(subjects)} subjects, encoders {_words(encoders.values())}.",
        "",
        f"Scores with 95 % intervals, {over}; n counts images.",
        _by_model([row for row in plain if row["subject"] == over], list(METRICS)),
        "",
        "Each arm minus the base, paired by prompt, seed and photo.",
        _by_model([{**row, "metric": row["metric"].removesuffix(GAIN)} for row in main_rows
                   if row["metric"].endswith(GAIN) and row["subject"] == over], list(METRICS), "+"),
        "",
        "Arm minus arm, paired.",
        _pairs([row for row in differences if row["subject"] == over], list(card.arms)),
    ]  # fmt: skip
    for metric in _EACH if len(subjects) > 1 else ():
        lines += ["", f"{METRICS[metric].title} by subject.", _by_subject([r for r in plain if r["metric"] == metric])]
    at = [row for row in scores if row["split"].startswith(f"{FINAL}@") and row["subject"] == over]
    for metric in ("dino_i", "clip_t") if at else ():
        lines += [
            "",
            f"{METRICS[metric].title} by denoising steps.",
            _by_steps([r for r in at if r["metric"] == metric]),
        ]
    return "\n".join(lines)


def _known(card: ComparisonCard) -> set[str]:
    return {BASE, *REFERENCES, *card.arms}


def _by_model(rows: Sequence[Row], metrics: list[str], sign: str = "") -> str:
    at = {(row["model"], row["metric"]): row for row in rows}
    found = [metric for metric in metrics if any(row["metric"] == metric for row in rows)]
    return _table("model", list(dict.fromkeys(r["model"] for r in _in_order(rows))), found,
                  lambda model, metric: at.get((model, metric)), sign)  # fmt: skip


def _by_subject(rows: Sequence[Row]) -> str:
    at = {(row["subject"], row["model"]): row for row in rows}
    models = list(dict.fromkeys(row["model"] for row in _in_order(rows)))
    subjects = sorted({row["subject"] for row in rows}, key=lambda name: (name == ALL_SUBJECTS, name))
    return _table("subject", subjects, models, lambda subject, model: at.get((subject, model)))


def _by_steps(rows: Sequence[Row]) -> str:
    at = {(row["model"], row["split"].partition("@")[2]): row for row in rows}
    steps = sorted({key[1] for key in at}, key=int)
    return _table("model", list(dict.fromkeys(r["model"] for r in _in_order(rows))), steps,
                  lambda model, n: at.get((model, n)))  # fmt: skip


def _pairs(rows: Sequence[Row], arms: list[str]) -> str:
    at = {(f"{row['model']} - {row['against']}", row["metric"]): row for row in rows}
    names = [f"{second} - {first}" for first, second in combinations(arms, 2)]
    there = [name for name in names if any(key[0] == name for key in at)]
    return _table("arms", there, list(METRICS), lambda name, metric: at.get((name, metric)), "+")


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """The base first, the references last."""
    return sorted(rows, key=lambda row: (row["model"] in REFERENCES, row["model"] != BASE))


def _table(head: str, names: list[str], columns: list[str], row_of: Any, sign: str = "") -> str:
    made = [{head: name} | {column: _text(row_of(name, column), sign) for column in columns} for name in names]
    there = [column for column in columns if any(row[column] for row in made)]
    return Table([Column(head, head), *(Column(name, name, align="left") for name in there)], made).text()


def _text(row: Row | None, sign: str = "") -> str | None:
    if row is None:
        return None
    digits = METRICS[row["metric"]].digits if row["metric"] in METRICS else 3
    value, low, high = (
        None if row[k] is None else f"{row[k] + 0.0:{sign}.{digits}f}" for k in ("value", "low", "high")
    )
    return value if low is None else f"{value} [{low}, {high}]"


def _words(names: Any) -> str:
    return " and ".join(dict.fromkeys(names))


if __name__ == "__main__":
    main()
