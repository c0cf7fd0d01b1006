"""One trial: what Ray Tune runs. It launches the ordinary training run and passes on what that run scores.

With `parallel.engine=zero` this process only waits for a Ray Train job of its own; with `local` it trains itself, and
Ray Tune uses the process again for the next trial, so libraries are loaded once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sdxl_ray.config import override, parse
from sdxl_ray.errors import RunError, UserError

#: Keys of what a trial reports, beside the metrics.
STEP, FINISHED, FAILED = "step", "finished", "failed"


def run_trial(config: dict[str, Any]) -> None:
    """`config`: recipe (plain), changes, storage, run (folder below it), metrics, scored, looks ((step, metrics) so far).

    Reports every look on the way, and the last one when the artifact is written: whoever is stopped has none yet.
    """
    from ray import tune

    from sdxl_ray.distributed.train import launch

    for step, metrics in config["looks"]:
        tune.report({STEP: step, **metrics})
    step = config["looks"][-1][0] if config["looks"] else 0

    def on_row(row: dict[str, Any]) -> None:
        nonlocal step
        for step, metrics in looks.add(row):  # noqa: B007 - where it failed is told
            tune.report({STEP: step, **metrics})

    try:
        recipe = override(parse(config["recipe"]), config["changes"])
        looks = Looks(recipe.optim.steps, config["metrics"], config["scored"])
        result = launch(recipe, storage=config["storage"], name=config["run"], on_row=on_row)
        tune.report({STEP: recipe.optim.steps, FINISHED: True, **looks.last(result.folder)})
    except (RunError, UserError) as error:
        # A number that is not finite would come again: what the scheduler gets is an ending, not an error to retry.
        tune.report({STEP: step, FAILED: str(error)})


class Looks:
    """Collects the rows of a run into looks: the metrics of one step, all there."""

    def __init__(self, steps: int, metrics: list[str], scored: bool) -> None:
        self._steps, self._wanted, self._ends = steps, metrics, "scores" if scored else "validation"
        self._open: dict[str, float] = {}
        self._final: dict[str, float] | None = None

    def add(self, row: dict[str, Any]) -> list[tuple[int, dict[str, float]]]:
        """The look that this row completes, if it does. Step 0 is the untouched base, and the last step is kept back.

        Raises RunError for a metric that is missing or not finite.
        """
        if row["kind"] == "validation":
            self._open["validation_loss"] = row["loss"]
        elif row["kind"] == "scores":
            self._open |= {name: value for name, value in row["metrics"].items() if value is not None}
        if row["kind"] != self._ends:
            return []
        metrics, self._open = self._checked(row["step"]), {}
        if row["step"] == self._steps:
            self._final = metrics
        return [(row["step"], metrics)] if 0 < row["step"] < self._steps else []

    def last(self, folder: Path) -> dict[str, float]:
        """The metrics of the last step; those of a run that had ended before come from its records."""
        if self._final is not None:
            return self._final
        from sdxl_ray.records import read

        self._open = {}
        for row in read(folder / "records", "validation").to_pylist():
            if row["step"] == self._steps:
                self._open["validation_loss"] = row["loss"]
        for row in read(folder / "records", "scores").to_pylist():
            if row["step"] == self._steps and row["split"] == "tune":
                self._open[row["metric"]] = row["value"]
        return self._checked(self._steps)

    def _checked(self, step: int) -> dict[str, float]:
        for name in self._wanted:
            value = self._open.get(name)
            if value is None:
                raise RunError(f"no {name} was scored at step {step}: its photos, prompts or encoder are missing")
            if not math.isfinite(value):
                raise RunError(f"{name} is {value} at step {step}: lower optim.lr")
        return {name: value for name, value in self._open.items() if math.isfinite(value)}
