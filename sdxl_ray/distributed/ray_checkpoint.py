"""Checkpoints for Ray Train: a pointer to each of ours, so that `Result`, the dashboard and other Ray tools see it.

    result = ray.train.Result.from_path("runs/NAME/ray/ID")
    folder = resolve(result.checkpoint)

Ray Train takes only checkpoints inside its own experiment folder. Ours lie beside it, in the run's folder, where a run
resumes from them and removes old ones. So Ray Train gets a folder with one `checkpoint.json`: where ours is, its run,
its step, and the hash of its manifest.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_ray.errors import UserError
from sdxl_ray.io.collectives import SingleProcess
from sdxl_ray.io.storage import Storage
from sdxl_ray.io.storage.deadline import cause
from sdxl_ray.paths import required_name
from sdxl_ray.training.checkpoint import CheckpointStore
from sdxl_ray.training.checkpoint_backends import MANIFEST

if TYPE_CHECKING:
    from ray.train import Checkpoint

POINTER = "checkpoint.json"
_FORMAT = 1


@dataclass(frozen=True)
class CheckpointPointer:
    """checkpoint: path or URL of the folder. run: its name below the storage. sha256: the manifest's own hash."""

    checkpoint: str
    run: str
    step: int
    sha256: str

    @classmethod
    def of(cls, storage: Storage, run: str, step: int, sha256: str) -> CheckpointPointer:
        """The pointer to a checkpoint of a run. A URL is written without its options, which may be secrets."""
        return cls(storage.kept_at(storage.root / _inside(run, step)), run, step, sha256)

    def write(self, files: Any, folder: str) -> None:
        """Write `checkpoint.json` into a new folder of a pyarrow file system. Raises OSError."""
        files.create_dir(folder)
        with files.open_output_stream(f"{folder}/{POINTER}") as sink:
            sink.write(json.dumps({"format": _FORMAT, **asdict(self)}, indent=1).encode())

    @classmethod
    def read(cls, files: Any, folder: str) -> CheckpointPointer:
        """The pointer in a folder of a pyarrow file system. Raises UserError when there is none of ours."""
        where = f"Ray Train's checkpoint {folder!r}"
        try:
            with files.open_input_stream(f"{folder}/{POINTER}") as source:
                plain = json.loads(source.read())
        except OSError as error:
            raise UserError(f"{where}: {POINTER} cannot be read ({cause(error)}): give one of a run of ours") from None
        except ValueError:
            raise UserError(f"{where}: {POINTER} is not JSON: give one of a run of ours") from None
        match plain:
            case {"format": int(made), **_fields} if made != _FORMAT:
                raise UserError(f"{where}: {POINTER} has format {made}, this version reads {_FORMAT}")
            case {"checkpoint": str(checkpoint), "run": str(run), "step": int(step), "sha256": str(sha256)}:
                for part in run.split("/"):
                    required_name(part)
                return cls(checkpoint, run, step, sha256)
        raise UserError(f"{where}: {POINTER} names no checkpoint: give one of a run of ours")


def resolve(checkpoint: Checkpoint, storage: Storage | str | Path | None = None) -> Path:
    """Our folder of a checkpoint that Ray Train names, with every file verified; under a URL a copy in scratch.

    storage: where the run's storage is now; default, where it was. Give it where runs were moved, or where a URL needs
    options. Raises UserError for a checkpoint that is not a pointer of ours, and for one of ours that is gone, damaged
    or was written again since; RunError when a store does not answer.
    """
    pointer = CheckpointPointer.read(checkpoint.filesystem, checkpoint.path)
    inside = _inside(pointer.run, pointer.step)
    if not isinstance(storage, Storage):
        storage = Storage.of(storage or pointer.checkpoint.removesuffix(f"/{inside.as_posix()}"))
    folder = storage.root / inside
    where = storage.kept_at(folder)
    found = CheckpointStore(folder.parent, SingleProcess(), keep=1, keep_best=False, storage=storage).at(pointer.step)
    if found is None:
        raise UserError(
            f"checkpoint {where!r} is gone or damaged: a run keeps the newest checkpoint.keep and the best one; take "
            "a later one of Result.best_checkpoints"
        )
    if json.loads((found.folder / MANIFEST).read_text(encoding="utf-8"))["sha256"] != pointer.sha256:
        raise UserError(
            f"checkpoint {where!r} was written again since Ray Train was given it: take a later one of "
            "Result.best_checkpoints"
        )
    return found.folder


def _inside(run: str, step: int) -> Path:
    return Path(run) / "checkpoints" / f"step-{step:07d}"
