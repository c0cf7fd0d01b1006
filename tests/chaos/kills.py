"""Chaos: seeded schedules of SIGKILLs on training workers, for LoRA, DreamBooth and both (R1 and R2 in RESULTS.md).

    python tests/chaos/kills.py --seed 1 --kills 5

Each recipe is trained twice by two workers, undisturbed and with that many kills at steps and moments drawn from the
seed. A row says whether losses, examples and the final weights, moments and averages are equal to the last bit, and how
many steps were computed again after a kill at most, which may not exceed a checkpoint interval. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.display.table import Column, Table
from sdxl_ray.distributed.train import launch
from tests.distributed.conftest import processes, quick, same_run

STEPS, EVERY = 60, 5
COLUMNS = (
    Column("recipe", "recipe"),
    Column("kills", "kills"),
    Column("resumed", "resumed at"),
    Column("redone", "steps redone at most"),
    Column("seconds", "seconds", "{:.0f}".format),
    Column("same", "bit-identical"),
)


class Killer:
    """Takes a run's rows and kills one of its workers at each step of the schedule, some moments after it."""

    def __init__(self, schedule: list[int], rng: random.Random) -> None:
        self._schedule, self._rng = list(schedule), rng
        self.kills: list[int] = []
        self.resumed: list[int] = []
        self.redone = 0
        self._last = 0

    def __call__(self, row: dict[str, Any]) -> None:
        """Look at one row."""
        if row["kind"] == "resume":
            self._came_back(row["step"])
        if row["kind"] != "step":
            return
        if row["step"] <= self._last and len(self.resumed) < len(self.kills):  # killed before the first checkpoint
            self._came_back(row["step"] - 1)
        self._last = row["step"]
        # One kill per start of the workers: the next waits until they have come back.
        if self._schedule and row["step"] >= self._schedule[0] and len(self.resumed) == len(self.kills):
            self._schedule.pop(0)
            time.sleep(self._rng.uniform(0, 0.3))
            victim = self._rng.choice(processes("TrainWorker"))
            victim.send_signal(signal.SIGKILL)
            self.kills.append(row["step"])

    def _came_back(self, step: int) -> None:
        self.resumed.append(step)
        self.redone = max(self.redone, self._last - step)


def recipes() -> dict[str, Recipe]:
    """The three ways of tuning, with room for all the kills."""
    common = {
        "optim__steps": STEPS,
        "checkpoint__every": EVERY,
        "parallel__workers": 2,
        "resources__max_failures": -1,
        "optim__ema_decay": 0.9,
    }
    return {name: quick(name, **common) for name in ("tiny_lora", "tiny_dreambooth", "tiny_dreambooth_lora")}


def one(name: str, recipe: Recipe, kills: int, seed: int, storage: Path) -> dict[str, Any]:
    """Train a recipe in peace and under fire; a row of the table."""
    rng = random.Random(f"{seed}-{name}")
    schedule = sorted(rng.sample(range(2, STEPS - 2), kills))
    calm = launch(recipe, storage=storage / "calm", name=name).folder
    killer, started = Killer(schedule, rng), time.monotonic()
    folder = launch(recipe, storage=storage / "killed", name=name, on_row=killer).folder
    try:
        same_run(calm, folder)
        same = True
    except AssertionError:
        same = False
    return {
        "recipe": name,
        "kills": len(killer.kills),
        "resumed": ", ".join(map(str, killer.resumed)),
        "redone": killer.redone,
        "seconds": time.monotonic() - started,
        "same": "yes" if same else "NO",
        "good": same and len(killer.kills) >= kills and killer.redone <= EVERY,
    }


def main() -> int:
    """Run every schedule; the exit code."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--kills", type=int, default=5)
    words.add_argument("--only", choices=tuple(recipes()), help="one recipe instead of all three")
    asked = words.parse_args()

    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, recipe in recipes().items():
            if asked.only in (None, name):
                rows.append(one(name, recipe, asked.kills, asked.seed, Path(folder)))
                print(Table(COLUMNS, rows[-1:]).text(), flush=True)
    ray.shutdown()
    print(Table(COLUMNS, rows).text())
    return 0 if all(row["good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
