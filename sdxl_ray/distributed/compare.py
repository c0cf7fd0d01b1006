"""Compare: train the arms of an experiment one after another on one cluster, judge them beside the base, report.

Every arm is an ordinary run in `<storage>/<experiment>-<arm>`, so an interrupted comparison goes on where it was: an
arm that is done is not trained again, a picture that is there is not drawn again. The report is made from records.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from sdxl_ray import __version__
from sdxl_ray.artifact import Artifact
from sdxl_ray.config import Recipe
from sdxl_ray.core.grid import grid
from sdxl_ray.core.quality.evaluate import Evaluation
from sdxl_ray.display.table import Column, Table
from sdxl_ray.display.units import bytes_text, count_text, seconds_text
from sdxl_ray.distributed.accuracy import judge
from sdxl_ray.distributed.cluster import connected
from sdxl_ray.distributed.train import RunResult, launch
from sdxl_ray.experiment import Experiment
from sdxl_ray.records import read
from sdxl_ray.report.build import Written, write_report
from sdxl_ray.report.source import ArmCard, ComparisonCard, Environment
from sdxl_ray.storage import Storage

OnRow = Callable[[dict[str, Any]], None]

COLUMNS = (
    Column("arm", "arm"),
    Column("trainable", "trainable parameters", count_text),
    Column("file_bytes", "file size", bytes_text),
    Column("train_s", "training", seconds_text),
    Column("samples_per_s", "samples/s", "{:.1f}".format),
    Column("peak_bytes", "peak memory", bytes_text),
    Column("loss_before", "validation loss before", "{:.4f}".format),
    Column("loss_after", "after", "{:.4f}".format),
)


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to: one plain dict per arm, the samples side by side, the scores, the report's files.

    evaluation None: the arms have no subject to be judged by.
    """

    rows: list[dict[str, Any]]
    grid: Path
    evaluation: Evaluation | None
    report: Written

    def table(self) -> Table:
        """The rows as a table."""
        return Table(COLUMNS, self.rows)


def compare(
    name: str,
    experiment: Experiment,
    recipes: dict[str, Recipe],
    *,
    storage: str | Path,
    address: str | None,
    on_row: OnRow,
) -> Comparison:
    """Train every arm (or find it trained), judge and compare; files go to `<storage>/<name>-comparison/`.

    Raises UserError before the first arm starts when any arm's input is wrong that can be known by then.
    """
    zero = [r for r in recipes.values() if r.parallel.engine == "zero"]
    cpus = max((r.parallel.workers[1] * r.resources.cpus_per_worker for r in zero), default=0)
    results: dict[str, RunResult] = {}
    with connected(address, cpus) if zero else nullcontext():
        for arm, recipe in recipes.items():
            on_row({"kind": "note", "text": f"arm {arm} ({len(results) + 1} of {len(recipes)})"})
            results[arm] = launch(recipe, storage=storage, name=f"{name}-{arm}", address=address, on_row=on_row)
    place = Storage.of(storage)
    home = place.root / f"{name}-comparison"
    place.get_folder(home)
    home.mkdir(parents=True, exist_ok=True)
    rows = [_row(arm, result) for arm, result in results.items()]
    _grid(recipes, results).save(home / "grid.png")
    artifacts = {arm: Artifact.open(result.artifact) for arm, result in results.items()}
    judged = judge(experiment, recipes, artifacts, home, on_row)
    card = _card(name, experiment, recipes, results, artifacts)
    if judged is not None:
        card = card.model_copy(update={"settings": judged[1]})
    card.write(home)
    on_row({"kind": "phase", "name": "writing the report"})
    report = write_report(home)
    place.put_folder(home)
    return Comparison(rows, home / "grid.png", judged[0] if judged else None, report)


def _card(
    name: str,
    experiment: Experiment,
    recipes: dict[str, Recipe],
    results: dict[str, RunResult],
    artifacts: dict[str, Artifact],
) -> ComparisonCard:
    first = next(iter(artifacts.values())).manifest
    arms = {
        arm: ArmCard(run=result.folder.name, recipe=recipes[arm].model_dump(mode="json"), artifact=artifacts[arm].hash)
        for arm, result in results.items()
    }
    packages = ("torch", "diffusers", "transformers", "peft", "ray", "deepspeed", "accelerate")
    versions = {package: metadata.version(package) for package in packages}
    environment = Environment(
        versions={"python": platform.python_version(), "sdxl_ray": __version__, **versions},
        hardware=f"{os.cpu_count()} CPU cores, {platform.machine()}",
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    base = {"id": first.base.id, "revision": first.base.revision}
    return ComparisonCard(name=name, experiment=experiment.description, arms=arms, base=base, environment=environment)


def _row(arm: str, result: RunResult) -> dict[str, Any]:
    steps = read(result.folder / "records", "steps")
    losses = read(result.folder / "records", "validation")["loss"].to_pylist()
    return {
        "arm": arm,
        "trainable": result.summary["trainable"],
        "file_bytes": sum(f.stat().st_size for f in result.artifact.rglob("*.safetensors")),
        "train_s": sum(steps["seconds"].to_pylist()),
        "samples_per_s": statistics.median(steps["samples_per_s"].to_pylist()),
        "peak_bytes": max(steps["peak_bytes"].to_pylist()),
        "loss_before": losses[0] if losses else None,
        "loss_after": losses[-1] if losses else None,
        "artifact": str(result.artifact),
    }


def _grid(recipes: dict[str, Recipe], results: dict[str, RunResult]) -> Image.Image:
    """Rows are (prompt, seed), columns the base and each arm's last look."""
    first = next(iter(results))
    prompts, each = recipes[first].evaluation.prompts, recipes[first].evaluation.samples_per_prompt
    columns = {"base": _look(results[first], 0)} | {arm: _look(result, -1) for arm, result in results.items()}
    shown = min(len(pictures) for pictures in columns.values())
    rows = [[Image.open(pictures[i]) for pictures in columns.values()] for i in range(shown)]
    labels = [prompts[i // each] if prompts else f"sample {i}" for i in range(shown)]
    return grid(rows, labels, list(columns))


def _look(result: RunResult, which: int) -> list[Path]:
    return sorted(sorted((result.folder / "samples").glob("step-*"))[which].glob("*.png"))
