"""The search, measured: trials an hour against one by one, ASHA + Optuna against random, tuned against default.

    python tests/bench/tune.py rate --trials 6                       # the same trials, searched and one by one
    python tests/bench/tune.py searchers --seeds 0 1 2               # equal training steps, several seeds
    python tests/bench/tune.py proof --subjects mushroom penguin         # tuned against default on the final split

`searchers` and `proof` keep what they have done in `--storage`: run the same command to resume. `proof` reads the
searches of `searchers` where they are the same. Nothing here fails on a time or a score.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from machine import machine

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.display.table import Column, Table
from sdxl_ray.display.units import seconds_text
from sdxl_ray.io.search_records import SearchCard, Trial, better, finished, progress, read_trials, steps_taken
from sdxl_ray.tiny._build.catalog import SUBJECTS


def main() -> None:
    """Measure what the command line asks for and print one table."""
    options = _options()
    rows, columns = {"rate": _rate, "searchers": _searchers, "proof": _proof}[options.what](options)
    about = {**machine(), "command": shlex.join(["python", *sys.argv])}
    print("\n".join(f"{name}: {value}" for name, value in about.items()), end="\n\n")
    print(Table(columns, rows).text())
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rate", "searchers", "proof"))
    parser.add_argument("--space", default="tiny_lora", help="space of every search (default: tiny_lora)")
    parser.add_argument(
        "--subjects", nargs="+", default=["mushroom"], metavar="NAME", help="shipped ones (default: mushroom)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the searchers (default: 0)")
    parser.add_argument("--trials", type=int, default=12, help="whole trials that the budget pays for (default: 12)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a trial (default: 300)")
    parser.add_argument("--grace", type=int, help="steps before ASHA may stop a trial (default: a third of them)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="A.B=C", help="more settings of recipe or space, as final.seeds=12"
    )
    parser.add_argument("--storage", type=Path, default=Path("runs/bench-tune"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    return parser.parse_args()


def _settings(options: argparse.Namespace, subject: str) -> list[str]:
    """The recipe's settings, as words of a command line: the same for every search of a subject."""
    every, name = max(1, options.steps // 3), SUBJECTS[subject].class_name
    return [
        f"data.images=subject:{subject}",
        f"data.validation=subject:{subject}/held_out",
        f"data.subject=sks {name}",
        f"data.class_name={name}",
        f"optim.steps={options.steps}",
        f"checkpoint.every={options.steps}",
        f"evaluation.every={every}",
        "evaluation.patience=0",  # equal budgets: only the scheduler ends a trial
        *options.set,
    ]


#: What differs between the two; the budget in training steps is the same.
ARMS: dict[str, list[str]] = {
    "asha+tpe": ["scheduler.kind=asha", "searcher.kind=tpe"],
    "random": ["scheduler={kind: none}", "searcher.kind=random"],
}


def _command(options: argparse.Namespace, subject: str, arm: str, seed: int) -> tuple[list[str], Path]:
    """A search as its command, and its folder, which another command does not find."""
    mine = list(ARMS[arm])
    if arm == "asha+tpe":
        mine.append(f"scheduler.grace_period={options.grace or max(1, options.steps // 3)}")
    mine += [f"searcher.seed={seed}", f"budget={{steps: {options.trials * options.steps}, trials: null}}"]
    words = ["tune", options.space, *_settings(options, subject), *mine]
    digest = hashlib.sha256(shlex.join(words).encode()).hexdigest()[:6]
    name = f"{options.space}-{subject}-{arm.replace('+', '-')}-{seed}-{digest}"
    return [*words, "--storage", str(options.storage), "--name", name], options.storage / name


def _run(words: list[str]) -> float:
    """One command of this package in a process of its own; seconds. Its progress goes to stderr."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "sdxl_ray", *words], stdout=sys.stderr, check=True)
    return time.monotonic() - began


def _searched(options: argparse.Namespace, subject: str, arm: str, seed: int) -> tuple[SearchCard, list[Trial]]:
    words, home = _command(options, subject, arm, seed)
    if not (home / "report.json").is_file():
        _run(words)
    return SearchCard.open(home), read_trials(home)


def _searchers(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Column]]:
    rows = []
    for subject in options.subjects:
        for seed in options.seeds:
            found = {arm: _searched(options, subject, arm, seed) for arm in ARMS}
            rows.append({"subject": subject, "seed": seed, **_race(found)})
            print(rows[-1], file=sys.stderr, flush=True)
    columns = [
        Column("subject", "subject"),
        Column("seed", "seed"),
        Column("default", "default", "{:.4f}".format),
        Column("random", "random's best", "{:.4f}".format),
        Column("random_steps", "its steps"),
        Column("best", "ASHA + TPE's best", "{:.4f}".format),
        Column("reached", "steps to random's best"),
        Column("ratio", "of random's steps", "{:.2f}".format),
        Column("random_trials", "trials: random"),
        Column("trials", "ASHA + TPE"),
    ]
    return rows, columns


def _race(found: dict[str, tuple[SearchCard, list[Trial]]]) -> dict[str, Any]:
    """When ASHA + TPE was as good as random became, in training steps; None where it never was."""
    (card, quick), (_, plain) = found["asha+tpe"], found["random"]
    (metric, mode), *_ = card.space.modes.items()
    mine, other = progress(quick, metric, mode), progress(plain, metric, mode)
    goal = other[-1][2]
    reached = next((steps for _, steps, value in mine if not better(mode, goal, value)), None)
    whole = steps_taken(plain)
    return {
        "default": finished(plain)[0].metrics[metric],
        "random": goal,
        "random_steps": whole,
        "best": mine[-1][2],
        "reached": reached,
        "ratio": None if reached is None else reached / whole,
        "random_trials": len(plain),
        "trials": len(quick),
    }


def _proof(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Column]]:
    rows = []
    for subject in options.subjects:
        for seed in options.seeds:
            card, _ = _searched(options, subject, "asha+tpe", seed)
            verdict = card.verdict
            assert verdict is not None
            gain = next((row for row in verdict.differences if row["metric"] == "quality"), {})
            row = {"subject": subject, "seed": seed, "winner": verdict.winner}
            row |= {
                "beats": "yes" if verdict.beats_default else "no",
                **{k: gain.get(k) for k in ("value", "low", "high")},
            }
            rows.append(row)
    columns = [
        Column("subject", "subject"),
        Column("seed", "seed"),
        Column("winner", "winning trial"),
        Column("value", "quality, tuned - default", "{:+.4f}".format),
        Column("low", "low", "{:+.4f}".format),
        Column("high", "high", "{:+.4f}".format),
        Column("beats", "interval above 0", align="left"),
    ]
    return rows, columns


def _rate(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Column]]:
    """The same whole trials three ways: a search of local trials, and `train` one by one with and without Ray."""
    subject, rows = options.subjects[0], []
    stamp = time.strftime("%H%M%S")

    words = [*_settings(options, subject), "scheduler={kind: none}", "searcher.kind=random"]
    words += [f"budget.trials={options.trials}", "final={seeds: 2, class_images: 2}"]
    storage = options.storage / f"rate-{stamp}"
    seconds = _run(["tune", options.space, *words, "--storage", str(storage), "--name", "search"])
    trials = read_trials(storage / "search")
    searching = max(trial.ended_s for trial in trials)
    rows.append({"how": "tune, two at once where there are two cores", "trials": len(trials), "seconds": seconds})
    rows.append({"how": "the same without start, final split and report", "trials": len(trials), "seconds": searching})
    files = list(_recipes(trials, SearchCard.open(storage / "search"), options.storage / f"rate-{stamp}"))
    for how, more in (
        ("train, one by one, LocalEngine", ["parallel.engine=local", "parallel.workers=1"]),
        ("train, one by one, Ray Train + ZeRO, 1 worker", ["parallel.engine=zero", "parallel.workers=1"]),
    ):
        apart = options.storage / f"rate-{stamp}-{more[0].rpartition('=')[2]}"
        seconds = sum(_run(["train", str(file), *more, "--storage", str(apart), "--name", file.stem]) for file in files)
        rows.append({"how": how, "trials": len(files), "seconds": seconds})
    for row in rows:
        row["per_hour"] = row["trials"] / row["seconds"] * 3600
    columns = [
        Column("how", "how"),
        Column("trials", "trials"),
        Column("seconds", "time", seconds_text, align="right"),
        Column("per_hour", "trials an hour", "{:.1f}".format),
    ]
    return rows, columns


def _recipes(trials: list[Trial], card: SearchCard, folder: Path) -> Iterator[Path]:
    """The trials' recipes as files, judged by the same photos and prompts as in the search."""
    first = Recipe.model_validate(card.recipe)
    split = {"evaluation.split": "tune"}
    for trial in trials:
        chosen = override(first, {**split, **(trial.parameters if trial.number else {})})
        path = folder / f"trial-{trial.number:03d}.yaml"
        path.write_text(yaml.safe_dump(chosen.model_dump(mode="json")))
        yield path


if __name__ == "__main__":
    main()
