"""One trial: what Ray Tune runs. It launches the ordinary training run and passes on what that run scores.

With `parallel.engine=zero` this process only waits for a Ray Train job of its own; with `local` it trains itself, and
Ray Tune uses the process again for the next trial, so libraries are loaded once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sdxl_ray.config.recipe import override, parse
from sdxl_ray.distributed.train import RunResult, launch
from sdxl_ray.distributed.worker_paths import recipe_here
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.evaluation.evaluated_models import BASE, OTHER, REAL
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import read

#: Keys of what a trial reports, beside the metrics.
STEP, FINISHED, FAILED = "step", "finished", "failed"
#: Step of a finished trial's artifact, and every evaluation that its run has recorded.
KEPT, EVALUATIONS = "kept", "looks"

Look = tuple[int, dict[str, float]]


def run_trial(config: dict[str, Any]) -> None:
    """`config`: recipe (plain), changes, storage, run (a folder there), metrics, scored, evaluations so far (step,
    metrics), driver (its working directory).

    Reports every evaluation during training. The last one comes with the artifact: whoever is stopped before has none.
    """
    from ray import tune

    reported = 0

    def report(evaluation: Look) -> None:
        nonlocal reported
        reported = evaluation[0]
        tune.report({STEP: evaluation[0], **evaluation[1]})

    for step, metrics in config["looks"]:
        report((step, metrics))
    evaluations = TrialReporter(config["metrics"], config["scored"])
    try:
        recipe = recipe_here(override(parse(config["recipe"]), config["changes"]), config["driver"])

        def on_row(row: dict[str, Any]) -> None:
            evaluation = evaluations.add(row)
            if evaluation is not None and reported < evaluation[0] < recipe.optim.steps:
                report(evaluation)

        result = launch(recipe, storage=config["storage"], name=config["run"], on_row=on_row)
        tune.report(ending(result, TrialReporter(config["metrics"], config["scored"])))
    except (RunError, UserError) as error:
        # A number that is not finite would come again: what the scheduler gets is an ending, not an error to retry.
        tune.report({STEP: reported, FAILED: str(error)})


def ending(result: RunResult, evaluations: TrialReporter) -> dict[str, Any]:
    """What a run came to: the scores of the step that its artifact is of, and every evaluation for the record."""
    found = recorded(result.folder, evaluations)
    kept = Artifact.open(result.artifact).manifest.step
    return {STEP: max(found), FINISHED: True, KEPT: kept, EVALUATIONS: sorted(found.items()), **found[kept]}


def recorded(folder: Path, evaluations: TrialReporter) -> dict[int, dict[str, float]]:
    """Step -> metrics of every evaluation after step 0 in a run's records. Raises RunError as `Looks.add` does."""
    rows = [{"kind": "validation", **row} for row in read(folder / "records", "validation").to_pylist()]
    scores: dict[int, dict[str, float]] = {}
    for row in read(folder / "records", "scores").to_pylist():
        if row["model"] not in (BASE, REAL, OTHER):
            scores.setdefault(row["step"], {})[row["metric"]] = row["value"]
    rows += [{"kind": "scores", "step": step, "metrics": metrics} for step, metrics in scores.items()]
    rows.sort(key=lambda row: (row["step"], row["kind"] == "scores"))
    return dict(evaluation for row in rows if row["step"] and (evaluation := evaluations.add(row)) is not None)


class TrialReporter:
    """Collects the rows of a run into evaluations: the metrics of one step, all there.

    metrics: those that an evaluation must have; scored: whether an evaluation ends with its scores or with the
    validation loss.
    """

    def __init__(self, metrics: list[str], scored: bool) -> None:
        self._wanted, self._ends = metrics, "scores" if scored else "validation"
        self._open: dict[str, float] = {}

    def add(self, row: dict[str, Any]) -> Look | None:
        """(step, metrics) of the evaluation that this row ends, if it does.

        Raises RunError for a wanted metric that is missing or not finite.
        """
        if row["kind"] == "validation":
            self._open = {"validation_loss": row["loss"]}
        elif row["kind"] == "scores":
            self._open |= {name: value for name, value in row["metrics"].items() if value is not None}
        if row["kind"] != self._ends:
            return None
        found, self._open = self._open, {}
        for name in self._wanted:
            if name not in found:
                raise RunError(f"no {name} was scored at step {row['step']}: see what the run says about scores")
            if not math.isfinite(found[name]):
                raise RunError(f"{name} is {found[name]} at step {row['step']}: lower optim.lr")
        return row["step"], {name: value for name, value in found.items() if math.isfinite(value)}
