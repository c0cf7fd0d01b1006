"""Arms that are merges: made of other arms' artifacts once these are trained, and found again by what they are made of.

A merge lies in `<storage>/<experiment>-<arm>[-<subject>][-<seed>]/artifact`, as a run's result does. Beside it is the
list of images that its sources were trained on, so that no photo of them judges it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_ray.config.experiment import ArmRun
from sdxl_ray.distributed.train import RunResult
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.artifact import MANIFEST, Artifact
from sdxl_ray.io.rows import OnRow
from sdxl_ray.io.storage import Storage
from sdxl_ray.models.merge import merge
from sdxl_ray.models.merge_sources import OpenedMerge, open_merge, open_source
from sdxl_ray.training.disk_errors import disk_problem

#: Of a run's folder, as `sdxl_ray.training.run_directory` writes it.
_TRAIN = Path("pictures") / "train.parquet"


def require_makeable(run: ArmRun, folder: Path) -> None:
    """Raise UserError for what is wrong with a merge before its arms are trained.

    That is: artifacts that cannot be opened, read or added to each other, and a folder that holds something else.
    """
    assert run.merge is not None
    try:
        given = [open_source(source, weight) for source, weight in run.sources if not isinstance(source, ArmRun)]
        if given:
            open_merge(given, run.merge.model_copy(update={"rank": None, "blocks": {}}), base=run.recipe.base)
    except UserError as error:
        raise UserError(f"arm {run.arm!r}: {error}") from None
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "artifact" / MANIFEST).is_file():
        raise UserError(f"{str(folder)!r} is not empty and holds no merge: give another --storage, or move it away")


def make_merge(run: ArmRun, made: Mapping[int, RunResult], folder: Path, store: Storage, on_row: OnRow) -> RunResult:
    """Merge, unless the same merge is there. made: the results of trainings by the `id` of their ArmRun.

    Raises UserError, RunError when the disk is full.
    """
    assert run.merge is not None
    paths = [made[id(source)].artifact if isinstance(source, ArmRun) else source for source, _ in run.sources]
    weights = [weight for _, weight in run.sources]
    opened = open_merge(
        [open_source(*one) for one in zip(paths, weights, strict=True)], run.merge, base=run.recipe.base
    )
    store.get_folder(folder)
    artifact = folder / "artifact"
    if not _is_same(artifact, opened):
        try:
            merge(opened, artifact, on_row=on_row)
            _write_trained([Path(path).parent for path in paths], folder)
        except Exception as error:
            if (reason := disk_problem(error)) is None:
                raise
            raise RunError(f"{str(artifact)!r} cannot be written: {reason}") from None
        store.put_folder(folder)
    return RunResult(folder, artifact, {}, store.kept_at(folder))


def _is_same(folder: Path, opened: OpenedMerge) -> bool:
    """Whether the folder holds a whole artifact of the same sources, weights and settings."""
    try:
        manifest = Artifact.open(folder).manifest
    except UserError:
        return False
    known = {name: value for name, value in (manifest.origin or {}).items() if name != "residual"}
    kind = "full" if opened.merging.into == "model" else "lora"
    return (known, manifest.kind) == (opened.origin, kind)


def _write_trained(runs: Sequence[Path], folder: Path) -> None:
    """What every source was trained on; nothing where one of them does not say."""
    tables = [pq.read_table(run / _TRAIN) for run in runs if (run / _TRAIN).is_file()]
    (folder / _TRAIN).unlink(missing_ok=True)
    if len(tables) == len(runs):
        (folder / _TRAIN).parent.mkdir(exist_ok=True)
        pq.write_table(pa.concat_tables(tables), folder / _TRAIN)
