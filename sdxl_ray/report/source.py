"""A comparison's folder on disk: its card, its records, and the folders of the runs it names.

    <storage>/<experiment>-comparison/
      comparison.json     the card: what was compared, where the runs are, how images were drawn
      records/            tables `scores`, `differences`, `images`, `requests`
      images/           what `images` names
    <storage>/<run>/      records/, summary.json, run.json, artifact/, images/train.parquet

Opening checks everything that can be wrong with the folder; what is merely not there is for `facts` to say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdxl_ray.config.schema_errors import first_problem
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import LORA_WEIGHTS, MANIFEST, SINGLE_FILE, Artifact, Manifest
from sdxl_ray.io.atomic import write_text
from sdxl_ray.io.records import read
from sdxl_ray.io.rows import Row

CARD = "comparison.json"


class _Card(BaseModel):
    """A card may say more than this version knows: what it does not know it leaves alone."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ArmCard(_Card):
    """One arm. run: its run folder relative to the storage; an arm of several subjects or seeds has one for each.

    artifact: the hash that was scored, in the same shape.
    """

    run: str | Annotated[dict[str, str], Field(min_length=1)]
    recipe: dict[str, Any] = {}
    artifact: str | dict[str, str] | None = None

    @property
    def runs(self) -> dict[str, str]:
        return self.run if isinstance(self.run, dict) else {"": self.run}

    @property
    def hashes(self) -> dict[str, str]:
        if self.artifact is None:
            return {}
        return self.artifact if isinstance(self.artifact, dict) else {"": self.artifact}


class Environment(_Card):
    """Where it was made. hardware: free words or named facts; versions: of the packages that decide results."""

    versions: dict[str, str] = {}
    hardware: str | dict[str, Any] = {}
    date: str = ""


class GenerationCard(_Card):
    """How every image was drawn, the same for all models. batch: images at once."""

    seeds: list[int] = []
    batch: int | None = None
    steps: int | None = None
    guidance: float | None = None
    prompts: list[str] = []


class ComparisonCard(_Card):
    """`comparison.json`: written by whoever compares, read here. base: its id, revision and whatever else is known.

    absent: metric -> why there are no scores of it. encoders: name -> SHA-256 over its files.
    """

    name: str
    experiment: str = ""
    arms: Annotated[dict[str, ArmCard], Field(min_length=1)]
    base: dict[str, Any] = {}
    environment: Environment = Environment()
    settings: GenerationCard = GenerationCard()
    absent: dict[str, str] = {}
    encoders: dict[str, str] = {}

    def write(self, folder: Path) -> Path:
        """Write the card."""
        return write_text(folder / CARD, self.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class RunSource:
    """One run as far as it is there. folder None: `why` says what is missing. recipe: its own, empty if not known."""

    name: str
    folder: Path | None
    why: str
    tables: dict[str, list[Row]]
    summary: Row
    artifact: Artifact | None
    artifact_bytes: int | None
    photos: int | None
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Everything that a report is made of, as it lies on disk."""

    folder: Path
    card: ComparisonCard
    tables: dict[str, list[Row]]
    runs: dict[str, dict[str, RunSource]]


def open_comparison(folder: str | Path) -> Source:
    """Read a comparison's folder and the runs that it names. No records there: nothing was scored, which is no error.

    Raises UserError, one line: not a comparison, a card or records that are damaged.
    """
    home = Path(folder).absolute()
    card = _card(home)
    records = home / "records"
    # An arm's run folder is asked for by name only, so that a card cannot point anywhere else.
    runs = {
        arm: {label: _run(home.parent, name) for label, name in entry.runs.items()} for arm, entry in card.arms.items()
    }
    return Source(home, card, _tables(records, ("scores", "differences", "pictures", "requests")), runs)


def _card(home: Path) -> ComparisonCard:
    if not home.is_dir():
        raise UserError(
            f"no folder {str(home)!r}: give <storage>/<experiment>-comparison, as `sdxl-ray compare` made it"
        )
    path = home / CARD
    if not path.is_file():
        what = "a run, not a comparison" if (home / "run.json").is_file() else "not a comparison"
        raise UserError(f"{str(home)!r} is {what} (no {CARD}): give <storage>/<experiment>-comparison")
    plain: Any = None
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return ComparisonCard.model_validate(plain)
    except ValidationError as error:
        raise UserError(f"{str(path)!r}: {first_problem(error, ComparisonCard, plain)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from None


def _tables(records: Path, names: tuple[str, ...]) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for name in names:
        try:
            rows[name] = read(records, name).to_pylist() if records.is_dir() else []
        except (pa.ArrowException, KeyError) as error:
            raise UserError(f"records {str(records)!r}, table {name}, cannot be read: {error}") from None
    return rows


def _run(storage: Path, name: str) -> RunSource:
    folder = (storage / name).resolve()
    if storage.resolve() not in folder.parents:
        raise UserError(f"run {name!r} is outside {str(storage)!r}: {CARD} was not written by `sdxl-ray compare`")
    if not folder.is_dir():
        return RunSource(name, None, f"run folder {name} is not beside the comparison", {}, {}, None, None, None)
    records = folder / "records"
    wanted = ("steps", "validation", "timings", "scores")
    tables = _tables(records, wanted)
    artifact, size = _artifact(folder / "artifact")
    recipe = _plain(folder / "run.json").get("recipe") or {}
    summary = _plain(folder / "summary.json")
    return RunSource(name, folder, "", tables, summary, artifact, size, _photos(folder), recipe)


def _plain(path: Path) -> Row:
    """What a JSON file says; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from None
    return plain if isinstance(plain, dict) else {}


def _artifact(folder: Path) -> tuple[Artifact | None, int | None]:
    """The artifact by its manifest alone: hashing gigabytes is the business of those who load it."""
    path = folder / MANIFEST
    if not path.is_file():
        return None, None
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
        # A model may be there twice, in the names of other tools too: its size is that of one.
        weights = (
            [LORA_WEIGHTS]
            if LORA_WEIGHTS in manifest.files
            else [f for f in manifest.files if f.endswith(".safetensors") and f != SINGLE_FILE]
        )
        sizes = [(folder / name).stat().st_size for name in weights]
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{str(path)!r} is damaged: {reason[:200]}") from None
    return Artifact(folder, manifest), sum(sizes)


def _photos(folder: Path) -> int | None:
    """How many images the run trained on."""
    path = folder / "pictures" / "train.parquet"
    if not path.is_file():
        return None
    try:
        count: int = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from None
    return count
