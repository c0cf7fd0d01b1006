"""An experiment from its name to its report: opened (what is wrong is found quickly), then run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_ray.config.experiment import ArmRun, Experiment, load_experiment
from sdxl_ray.data.image_sources import require_sources
from sdxl_ray.io.rows import OnRow, Row
from sdxl_ray.paths import required_name

if TYPE_CHECKING:
    from sdxl_ray.comparison.compare import ComparisonResult
    from sdxl_ray.io.artifact import Artifact
    from sdxl_ray.io.storage import Storage


@dataclass(frozen=True)
class OpenedExperiment:
    """name: of the comparison's folder. load: whether its load test runs."""

    name: str
    experiment: Experiment
    runs: Sequence[ArmRun]
    load: bool


def open_experiment(experiment: str | Path, changes: Mapping[str, Any], *, load: bool = True) -> OpenedExperiment:
    """Read an experiment and every arm's recipe; loads no framework. Raises UserError."""
    name = required_name(Path(experiment).stem, "the experiment's file name")
    read = load_experiment(str(experiment))
    runs = read.runs(dict(changes))
    for run in runs:
        required_name(run.named(name), "the name of a run,")
        require_sources(run.recipe.data)
    if read.load is not None and load:
        from serve.loadtest.generator import require_loadgen

        require_loadgen()  # before an hour of training, not after it
    return OpenedExperiment(name, read, runs, load and read.load is not None)


def run_experiment(
    opened: OpenedExperiment, *, storage: str | Path | Storage, address: str | None, on_row: OnRow
) -> tuple[ComparisonResult, list[Row]]:
    """Train, evaluate, load-test, report. The second result is the load test's requests; empty when it did not run."""
    from sdxl_ray.comparison.compare import compare

    requests: list[Row] = []

    def load_test(home: Path, artifacts: dict[str, Artifact]) -> None:
        if opened.load and opened.experiment.load is not None:
            from serve.loadtest.comparison import load_arms

            recipe = opened.runs[0].recipe
            requests.extend(load_arms(opened.experiment.load, recipe, artifacts, home, address=address, on_row=on_row))

    result = compare(
        opened.name,
        opened.experiment,
        opened.runs,
        storage=storage,
        address=address,
        on_row=on_row,
        then=load_test,
    )
    return result, requests
