"""Compare: train the arms of an experiment one after another on one cluster, judge them beside the base, report.

Every training is an ordinary run in `<storage>/<experiment>-<arm>[-<subject>][-<seed>]`, so an interrupted comparison
resumes where it stopped: what is trained already, under any name in the storage, is not trained again, and an image
that is there is not drawn again. The report is made from records.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdxl_ray.comparison.evaluate import judge, require_evaluable
from sdxl_ray.comparison.merged_arms import make_merge
from sdxl_ray.config.experiment import ArmRun, Experiment
from sdxl_ray.config.notes import NOTE
from sdxl_ray.data.image_grid import grid
from sdxl_ray.display.table import Column, Table
from sdxl_ray.display.units import bytes_text, count_text, seconds_text
from sdxl_ray.distributed.cluster import connected
from sdxl_ray.distributed.environment import environment
from sdxl_ray.distributed.train import RunResult, launch
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.runner import EvaluationResult
from sdxl_ray.interrupts import keeping
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import read
from sdxl_ray.io.rows import OnRow
from sdxl_ray.io.storage import Storage
from sdxl_ray.report.build import Written, write_report
from sdxl_ray.report.source import ArmCard, ComparisonCard
from sdxl_ray.training.run_directory import finished_run
from sdxl_ray.training.run_lock import locked

#: `then(folder, artifact of each arm's first run)` adds records to the folder before the report is made of them.
Then = Callable[[Path, dict[str, Artifact]], None]

COLUMNS = (
    Column("arm", "arm"),
    Column("runs", "runs"),
    Column("trainable", "trainable parameters", count_text),
    Column("file_bytes", "file size", bytes_text),
    Column("train_s", "training", seconds_text),
    Column("samples_per_s", "samples/s", "{:.1f}".format),
    Column("peak_bytes", "peak memory", bytes_text),
    Column("loss_before", "validation loss before", "{:.4f}".format),
    Column("loss_after", "after", "{:.4f}".format),
)


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison came to: one plain dict per arm, the samples side by side, the scores, the report's files.

    evaluation None: the arms have no subject to be judged by.
    """

    rows: list[dict[str, Any]]
    grid: Path
    evaluation: EvaluationResult | None
    report: Written

    def table(self) -> Table:
        """The rows as a table."""
        return Table(COLUMNS, self.rows)


def compare(
    name: str,
    experiment: Experiment,
    runs: Sequence[ArmRun],
    *,
    storage: str | Path | Storage,
    address: str | None,
    on_row: OnRow,
    then: Then = lambda home, artifacts: None,
) -> ComparisonResult:
    """Train every run (or find it trained), judge and compare; files go to `<storage>/<name>-comparison/`.

    then: what else is to be measured, once everything is judged.
    Raises UserError before the first arm starts when any arm's input is wrong that can be known by then.
    """
    store = Storage.usable(storage)
    require_evaluable(experiment, runs, store, name)
    zero = [run.recipe for run in runs if run.recipe.parallel.engine == "zero" and run.merge is None]
    workers = max((recipe.parallel.workers[1] for recipe in zero), default=0)
    cpus = max((recipe.parallel.workers[1] * recipe.resources.cpus_per_worker for recipe in zero), default=0)
    home = store.root / f"{name}-comparison"
    kept = f"{store.kept_at(home)} and the arms' runs keep what is done; the same command resumes the comparison"
    with locked(home), keeping(lambda: kept):
        store.get_folder(home)
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{str(home)!r} cannot be made: {error.strerror}; give another --storage") from None
        with connected(address, cpus) if zero else nullcontext():
            results = _train(name, runs, store, address, on_row)
            rows = [
                _row(arm, [r for run, r in zip(runs, results, strict=True) if run.arm == arm])
                for arm in experiment.arms
            ]
            _grid(runs, results).save(home / "grid.png")
            artifacts = [Artifact.open(result.artifact) for result in results]
            judged = judge(experiment, runs, artifacts, store, home, workers, on_row)
        card = _card(name, experiment, runs, results, artifacts)
        if judged is not None:
            known = {"settings": judged.drawing, "absent": judged.evaluation.missing, "encoders": judged.encoders}
            card = card.model_copy(update=known)
        card.write(home)
        first = {run.arm: artifact for run, artifact in reversed(list(zip(runs, artifacts, strict=True)))}
        then(home, {arm: first[arm] for arm in experiment.arms})
        on_row({"kind": "phase", "name": "writing the report"})
        report = write_report(home)
        store.put_folder(home)
        return ComparisonResult(rows, home / "grid.png", judged.evaluation if judged else None, report)


def _train(name: str, runs: Sequence[ArmRun], store: Storage, address: str | None, on_row: OnRow) -> list[RunResult]:
    results, row = list[RunResult](), _notes_once(on_row)
    made: dict[int, RunResult] = {}
    for number, run in enumerate(runs, start=1):
        folder = run.named(name)
        what = f"arm {run.arm}{f' ({run.label})' if run.label else ''}"
        if run.merge is not None:
            on_row({"kind": "note", "text": f"{what}: {number} of {len(runs)}, a merge"})
            results.append(make_merge(run, made, store.root / folder, store, on_row))
            continue
        same = None if (store.root / folder).exists() else finished_run(run.recipe, store.root)
        known = f", trained already as {same}" if same else ""
        on_row({"kind": "note", "text": f"{what}: {number} of {len(runs)}{known}"})
        results.append(launch(run.recipe, storage=store, name=same or folder, address=address, on_row=row))
        made[id(run)] = results[-1]
    return results


def _notes_once(on_row: OnRow) -> OnRow:
    """Arms share their images and most settings: what one has noted, the next need not."""
    seen: set[str] = set()

    def row(row: dict[str, Any]) -> None:
        if row["kind"] == "note" and row["text"].startswith(NOTE):
            if row["text"] in seen:
                return
            seen.add(row["text"])
        on_row(row)

    return row


def _card(
    name: str,
    experiment: Experiment,
    runs: Sequence[ArmRun],
    results: Sequence[RunResult],
    artifacts: Sequence[Artifact],
) -> ComparisonCard:
    first = artifacts[0].manifest
    arms = {}
    for arm in experiment.arms:
        mine = [(run, r, a) for run, r, a in zip(runs, results, artifacts, strict=True) if run.arm == arm]
        arms[arm] = ArmCard(
            run=_labelled({run.label: result.folder.name for run, result, _ in mine}),
            recipe=mine[0][2].manifest.recipe if mine[0][0].merge else mine[0][0].recipe.model_dump(mode="json"),
            artifact=_labelled({run.label: artifact.hash for run, _, artifact in mine}),
        )
    base = {"id": first.base.id, "revision": first.base.revision}
    return ComparisonCard(name=name, experiment=experiment.description, arms=arms, base=base, environment=environment())


def _labelled(values: dict[str, str]) -> dict[str, str] | str:
    """By label; the value alone where an arm was trained once."""
    return values.get("", values)


def _row(arm: str, results: Sequence[RunResult]) -> dict[str, Any]:
    """What an arm took: means over its runs, the largest of counts and bytes. A merge took no training."""
    size = max(sum(f.stat().st_size for f in r.artifact.rglob("*.safetensors")) for r in results)
    known: dict[str, Any] = {"arm": arm, "runs": len(results)}
    if not results[0].summary:
        untrained = {column.key: None for column in COLUMNS if column.key not in known}
        return {**known, **untrained, "file_bytes": size, "artifact": str(results[0].artifact)}
    steps = [read(result.folder / "records", "steps") for result in results]
    losses = [read(result.folder / "records", "validation")["loss"].to_pylist() for result in results]
    validated = [some for some in losses if some]
    return {
        **known,
        "trainable": max(result.summary["trainable"] for result in results),
        "file_bytes": size,
        "train_s": statistics.fmean(sum(some["seconds"].to_pylist()) for some in steps),
        "samples_per_s": statistics.fmean(statistics.median(some["samples_per_s"].to_pylist()) for some in steps),
        "peak_bytes": max(max(some["peak_bytes"].to_pylist()) for some in steps),
        "loss_before": statistics.fmean(some[0] for some in validated) if validated else None,
        "loss_after": statistics.fmean(some[-1] for some in validated) if validated else None,
        "artifact": str(results[0].artifact),
    }


def _grid(runs: Sequence[ArmRun], results: Sequence[RunResult]) -> Image.Image:
    """Rows are (prompt, seed), columns the base and each arm's last evaluation in its first run; no merges."""
    trained = [(run, result) for run, result in zip(runs, results, strict=True) if run.merge is None]
    first = {run.arm: result for run, result in reversed(trained)}
    recipe, some = runs[0].recipe, results[0]
    prompts, each = recipe.evaluation.prompts, recipe.evaluation.samples_per_prompt
    arms = list(dict.fromkeys(run.arm for run, _ in trained))
    columns = {"base": _sample_files(some, 0)} | {arm: _sample_files(first[arm], -1) for arm in arms}
    shown = min(len(images) for images in columns.values())
    rows = [[Image.open(images[i]) for images in columns.values()] for i in range(shown)]
    labels = [prompts[i // each] if prompts else f"sample {i}" for i in range(shown)]
    return grid(rows, labels, list(columns))


def _sample_files(result: RunResult, which: int) -> list[Path]:
    return sorted(sorted((result.folder / "samples").glob("step-*"))[which].glob("*.png"))
