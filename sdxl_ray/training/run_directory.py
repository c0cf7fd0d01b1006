"""The folder of a run: which recipe and images made it. The same command resumes it; another recipe is refused."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_ray.config.recipe import Recipe, deciding, parse_recorded
from sdxl_ray.data.dataset import ImageSet, scan, scan_class, split
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.subject import halves
from sdxl_ray.io.artifact import MANIFEST, Artifact, Manifest
from sdxl_ray.io.atomic import write_bytes
from sdxl_ray.io.storage import Storage
from sdxl_ray.models.base_model_files import locate
from sdxl_ray.models.initial_weights import initial_artifact
from sdxl_ray.training.in_training_evaluation import require_scorable
from sdxl_ray.training.input_notes import require_sound
from sdxl_ray.training.trainer import Splits

_SETS = ("train", "held_out", "given_class")

#: Below a run's folder, and not mirrored with it: sent by the store of checkpoints, or of no use to anyone else.
APART = ("checkpoints", "ray")


@dataclass(frozen=True)
class RunFolder:
    """`<storage>/<name>`, opened for a recipe; `cache` is shared by all runs of the storage."""

    folder: Path
    cache: Path

    @property
    def artifact(self) -> Path:
        """Where the result is when the run has ended."""
        return self.folder / "artifact"

    def images(self) -> Splits:
        """The run's images as they were scanned."""
        sets = (pq.read_table(self.folder / "pictures" / f"{name}.parquet").to_pylist() for name in _SETS)
        return Splits(*(ImageSet.from_rows(rows) for rows in sets))

    def summary(self) -> dict[str, Any] | None:
        """What the run came to, or None while it has not ended with an intact artifact."""
        path = self.folder / "summary.json"
        if not path.is_file():
            return None
        try:
            Artifact.open(self.artifact)
        except UserError:
            return None
        summary: dict[str, Any] = json.loads(path.read_text())
        return summary

    def finish(self, summary: dict[str, Any], storage: Storage | None = None) -> None:
        """Say that the run has ended, once all that it left is in the storage."""
        write_bytes(self.folder / "summary.json", json.dumps(summary, indent=1).encode())
        if storage is not None:
            storage.put_folder(self.folder, APART)

    def senders(self, storage: Storage | None) -> list[Callable[[dict[str, Any]], None]]:
        """A sink that sends what the run has written whenever a checkpoint is about to be made; none without a URL."""
        if storage is None or storage.url is None:
            return []

        def send(row: dict[str, Any]) -> None:
            if row["kind"] == "saving":
                storage.put_folder(self.folder, (*APART, "artifact"))

        return [send]


def default_name(recipe: Recipe) -> str:
    """A name that the same command finds again: subject, method, and the recipe's identity."""
    what = recipe.data.subject or Path(str(recipe.data.images).rpartition(":")[2]).stem
    method = ("dreambooth_lora" if recipe.data.prior else "lora") if recipe.tuning.kind == "lora" else "dreambooth"
    words = re.sub(r"[^a-z0-9]+", "-", what.lower())[:64].strip("-") or "subject"  # no ASCII letter or digit in it
    return f"{words}-{method}-{recipe.identity[:8]}"


def scan_images(recipe: Recipe) -> Splits:
    """Read every image once; UserError that lists all that cannot be used, or for scores that cannot be had."""
    images = divided(scan(recipe.data), recipe)
    require_scorable(recipe, len(images.held_out))
    return images


def divided(found: ImageSet, recipe: Recipe) -> Splits:
    """A run's images from those of `data.images`. A trial holds out the half of a search's photos that is its."""
    train, held_out = split(found, recipe.data)
    if recipe.evaluation.split == "tune":
        held_out, _ = halves(held_out)
    images = Splits(train, held_out, scan_class(recipe.data))
    require_sound(recipe, images)
    return images


def open_run(recipe: Recipe, storage: Path, name: str | None, images: Splits) -> RunFolder:
    """Create the run's folder, or go on in it.

    Raises UserError when it was made by another recipe (naming the first difference), on another base or with other
    images.
    """
    folder = (storage / (name or default_name(recipe))).absolute()
    run = RunFolder(folder, storage.absolute() / "cache")
    try:
        if require_own(recipe, folder, images):
            _write_index(folder, images)  # the same images, which may lie elsewhere now
            return run
        _write_index(folder, images)
        write_recipe(folder, _making(recipe, images))
    except OSError as error:
        reason = error.strerror or str(error)
        free = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        raise UserError(f"run folder {str(folder)!r} cannot be made: {reason}{free}; give another --storage") from None
    return run


def require_own(recipe: Recipe, folder: Path, images: Splits, fix: str = "give another --name") -> bool:
    """Whether a run of this recipe is in the folder already; False: there is none, and it can be begun there.

    Raises UserError for a folder of anything else; `fix`: what the user can do about it.
    """
    if (folder / "run.json").is_file():
        _require_same(provenance_of(folder), _making(recipe, images), folder, fix)
        return True
    if folder.is_dir() and not _is_unfinished(folder):
        raise UserError(f"{str(folder)!r} is not empty and not a run folder: {fix}")
    return False


def finished_run(recipe: Recipe, storage: Path) -> str | None:
    """The name of a run in the storage that has ended and computed what `recipe` does.

    That is: on the base as it is now, and from the same images.
    """
    mine = _flat(_identity(recipe.model_dump(mode="json")))
    provenance_here: dict[str, Any] | None = None
    for file in sorted(storage.glob("*/run.json")):
        run = RunFolder(file.parent.absolute(), storage.absolute() / "cache")
        try:
            made = provenance_of(file.parent)
        except UserError:
            continue
        if _flat(_identity(made["recipe"])) != mine:
            continue
        provenance_here = provenance_here or _making(recipe, scan_images(recipe))
        same = all(made[key] == provenance_here[key] for key in ("pictures", "init"))
        same = same and made["base"] in (None, provenance_here["base"])
        if same and run.summary() is not None:
            return file.parent.name
    return None


_INDEX = pa.schema(
    [(name, pa.string()) for name in ("key", "source", "caption")]
    + [(name, pa.int64()) for name in ("width", "height")]
    + [("role", pa.string())]
)


def write_recipe(folder: Path, made: Mapping[str, Any]) -> None:
    """Write what made a run, as `made_by` reads it. Raises OSError."""
    write_bytes(folder / "run.json", json.dumps({"format": 1, **made}, indent=1).encode())


def _write_index(folder: Path, images: Splits) -> None:
    """Which images train, are held out, and are of the class: a table for each, whole or not at all."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for key in _SETS:
        rows = pa.Table.from_pylist(getattr(images, key).index_rows(), schema=_INDEX)
        buffer = pa.BufferOutputStream()
        pq.write_table(rows, buffer)
        write_bytes(folder / "pictures" / f"{key}.parquet", buffer.getvalue().to_pybytes())


def _is_unfinished(folder: Path) -> bool:
    """Whether a folder holds nothing but what `open_run` left there when it was killed or the disk was full."""
    written = [f"pictures/{name}" for key in _SETS for name in (f"{key}.parquet", f".{key}.parquet.partial")]
    ours = {"pictures", ".run.json.partial", *written}
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")} <= ours


def _fingerprint(images: Splits) -> str:
    rows = [sorted((p.key, p.caption) for p in getattr(images, name)) for name in _SETS]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _making(recipe: Recipe, images: Splits) -> dict[str, Any]:
    """All that decides what a run here would compute: recipe, revision of the base, images, hash of `tuning.init`."""
    plain = recipe.model_dump(mode="json")
    initial = initial_artifact(recipe)
    return {
        "recipe": plain,
        "base": locate(recipe.base).revision,
        "pictures": _fingerprint(images),
        "init": initial.hash if initial is not None else None,
    }


def provenance_of(folder: Path) -> dict[str, Any]:
    """What made a run folder, as `_making` has it; base None: it was begun before that was written down.

    Raises UserError when its run.json says nothing that can be read.
    """
    try:
        plain = json.loads((folder / "run.json").read_text())
        base = plain.get("base") or _artifacts_base(folder)
        init = plain.get("init")
        return {"recipe": dict(plain["recipe"]), "base": base, "pictures": str(plain["pictures"]), "init": init}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(folder / 'run.json')!r} is damaged ({error}): give another --name") from None


def _artifacts_base(folder: Path) -> str | None:
    file = folder / "artifact" / MANIFEST
    return Manifest.model_validate_json(file.read_bytes()).base.revision if file.is_file() else None


def _identity(plain: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide what a run computes, with those that came after the recipe was written."""
    with contextlib.suppress(UserError):  # a setting of a later version: compared as it is
        plain = parse_recorded(plain, "recipe").model_dump(mode="json")
    return deciding(plain)


def _require_same(there: dict[str, Any], here: dict[str, Any], folder: Path, fix: str) -> None:
    old, new = (_flat(_identity(recipe["recipe"])) for recipe in (there, here))
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            raise UserError(
                f"run folder {str(folder)!r} was made by another recipe ({path} is {old.get(path)!r} there, "
                f"{new.get(path)!r} here): {fix}, or the old value"
            )
    if there["base"] not in (None, here["base"]):
        raise UserError(
            f"run folder {str(folder)!r} was made on base {here['recipe']['base']['id']!r} at {there['base'][:12]}, "
            f"which is at {here['base'][:12]} now: {fix}"
        )
    if there["init"] != here["init"]:
        raise UserError(f"run folder {str(folder)!r} started from another artifact (tuning.init): {fix}")
    if there["pictures"] != here["pictures"]:
        raise UserError(f"run folder {str(folder)!r} was made with other images or captions: {fix}")


def _flat(plain: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(plain, dict):
        return {path: plain}
    return {k: v for key, value in plain.items() for k, v in _flat(value, f"{path}.{key}" if path else key).items()}
