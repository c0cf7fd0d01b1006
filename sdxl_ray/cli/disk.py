"""Whether the storage has room for what a run will write, before anything starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_ray.display.units import file_size_text
from sdxl_ray.errors import UserError

if TYPE_CHECKING:
    from sdxl_ray.plan import Saving


def require_room(saving: Saving, storage: Path, run: Path | None = None) -> None:
    """Raise UserError when checkpoints and artifact do not fit in a folder.

    run: the run's own folder, if it may be there; what it has written already is counted as room.
    """
    if run is not None and (run / "summary.json").is_file():  # it has ended and writes nothing more
        return
    there = next(folder for folder in (storage, *storage.absolute().parents) if folder.exists())
    written = [run / "checkpoints", run / "artifact"] if run is not None else []
    free = shutil.disk_usage(there).free + sum(_size(folder) for folder in written)
    if saving.disk_bytes <= free:
        return
    fix = "give --storage on a larger disk"
    least = saving.least_disk_bytes
    if least <= free and least < saving.disk_bytes:
        fewer = "checkpoint.keep=1 checkpoint.keep_best=false evaluation.scores=never"
        fix = f"add {fewer} ({file_size_text(least)}), or {fix}"
    raise UserError(
        f"{saving.checkpoints} checkpoints of {file_size_text(saving.checkpoint_bytes)} and the artifact need "
        f"{file_size_text(saving.disk_bytes)} in {str(storage)!r}, which has {file_size_text(free)} free: {fix}"
    )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
