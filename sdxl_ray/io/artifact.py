"""Artifact: what a run leaves behind, a folder of weights and a manifest that says what they are.

`manifest.json` is written last and names every file with its SHA-256, so a folder that opens is whole. A `lora`
artifact holds `pytorch_lora_weights.safetensors`, a `full` one a standalone diffusers folder; the manifest lies
beside their files and disturbs neither `load_lora_weights` nor `from_pretrained`. `Artifact.hash` joins the quality
table, the latency table and the report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdxl_ray.config import base_lineage
from sdxl_ray.config.schema import MaxTokenLength
from sdxl_ray.errors import UserError
from sdxl_ray.io.atomic import write_text
from sdxl_ray.io.file_hash import sha256
from sdxl_ray.paths import local_folder

MANIFEST = base_lineage.MANIFEST
#: The file of a LoRA that diffusers looks for in a folder.
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
#: The same LoRA in the names that ComfyUI, A1111 and Forge read.
KOHYA_WEIGHTS = "kohya_lora.safetensors"
#: A full model in one file, where `artifact.single_file` asks for it.
SINGLE_FILE = "single_file.safetensors"
#: The folder with a safetensors file for each word that a LoRA brings (textual inversion).
WORDS = "embeddings"
FORMAT_VERSION: Literal[1] = 1
_MAX_MANIFEST_BYTES = 10 * 2**20
_PACKAGES = ("sdxl-ray", "torch", "diffusers", "transformers", "peft", "accelerate", "deepspeed", "ray", "safetensors")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


#: The model card, and the image that it shows.
CARD, CARD_IMAGE = "README.md", "samples.png"
#: Files at the top of an artifact that are no part of it: they may be added, edited and removed.
BESIDE = frozenset({CARD, CARD_IMAGE, "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitattributes", ".gitignore"})
_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_FOLDERS = frozenset({".git", ".cache", ".huggingface"})


class BaseReference(BaseModel):
    """The base that an artifact was made on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    revision: str


class Manifest(BaseModel):
    """What an artifact is: frozen, and refused when a key is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = FORMAT_VERSION
    kind: Literal["lora", "full"]
    recipe: dict[str, Any]
    recipe_identity: str
    base: BaseReference
    step: Annotated[int, Field(ge=0)]
    files: dict[str, Sha256]
    versions: dict[str, str]
    created: str
    #: How an artifact came to be that no run trained: "command" (import, extract, merge) and what it was made from.
    origin: dict[str, Any] | None = None

    @property
    def max_token_length(self) -> MaxTokenLength:
        """Tokens of a caption that it was trained with; 75 for one of before there was a choice."""
        length: MaxTokenLength = self.recipe.get("data", {}).get("max_token_length", 75)
        return length

    @property
    def canonical(self) -> bytes:
        """The same bytes for equal manifests: sorted keys, no spaces."""
        plain = self.model_dump(mode="json")
        if self.origin is None:
            del plain["origin"]
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Artifact:
    """A folder whose files were found to be exactly those of its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical manifest, and so of every file it names."""
        return hashlib.sha256(self.manifest.canonical).hexdigest()

    @property
    def in_kohya_alone(self) -> bool:
        """Whether it is a LoRA that diffusers' format cannot hold: LyCORIS' kinds, DoRA in some layers only."""
        return KOHYA_WEIGHTS in self.manifest.files and LORA_WEIGHTS not in self.manifest.files

    @property
    def word_files(self) -> dict[str, str]:
        """The files of its textual inversions by word, relative to its folder."""
        found = (PurePosixPath(name) for name in self.manifest.files)
        return {path.stem: str(path) for path in found if str(path.parent) == WORDS and path.suffix == ".safetensors"}

    @classmethod
    def open(cls, folder: str | Path) -> Artifact:
        """Read and verify an artifact; hashes every file.

        Raises UserError: not an artifact, a later format, or a file that is missing, altered, extra or outside.
        """
        folder = local_folder(folder)
        manifest = _read_manifest(folder)
        present = _names(folder)
        for name, expected in sorted(manifest.files.items()):
            _require_inside(folder, name)
            if name not in present:
                raise UserError(f"artifact {str(folder)!r}: {name} is missing (sha256 {expected}); copy it again")
            found = sha256(folder / name)
            if found != expected:
                raise UserError(
                    f"artifact {str(folder)!r}: {name} was altered: sha256 {found}, expected {expected}; copy it again"
                )
        extra = sorted(present - manifest.files.keys())
        if extra:
            raise UserError(f"artifact {str(folder)!r}: {extra[0]} is not in its manifest; move it out of the folder")
        return cls(folder, manifest)


def write_manifest(
    folder: str | Path,
    *,
    kind: Literal["lora", "full"],
    recipe: Mapping[str, Any],
    recipe_identity: str,
    base_id: str,
    base_revision: str,
    step: int,
    versions: Mapping[str, str] | None = None,
    created: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Artifact:
    """Hash every file of a finished folder and write its manifest, last and atomically.

    recipe: plain data, as `recipe.model_dump(mode="json")` gives it. origin: as in `Manifest`. versions: default,
    those of the packages here. created: ISO 8601, default now in UTC. Raises UserError when the folder holds links,
    OSError when it cannot be written.
    """
    folder = Path(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    manifest = Manifest(
        kind=kind,
        recipe=dict(recipe),
        recipe_identity=recipe_identity,
        base=BaseReference(id=base_id, revision=base_revision),
        step=step,
        files={name: sha256(folder / name) for name in sorted(_names(folder))},
        versions=dict(versions) if versions is not None else installed_versions(),
        created=created or datetime.now(UTC).isoformat(timespec="seconds"),
        origin=dict(origin) if origin is not None else None,
    )
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n", durable=True)
    return Artifact(folder, manifest)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that shape a result, read from their metadata without importing them."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _read_manifest(folder: Path) -> Manifest:
    where = f"artifact {str(folder)!r}"
    if not folder.is_dir():
        raise UserError(f"{where}: no such folder; give the artifact folder of a run")
    file = folder / MANIFEST
    if not file.is_file():
        inside = folder / "artifact"
        nearer = (
            f"did you mean {str(inside)!r}?" if (inside / MANIFEST).is_file() else "give the artifact folder of a run"
        )
        raise UserError(f"{where} holds no {MANIFEST}: {nearer}")
    _require_inside(folder, MANIFEST)
    try:
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise UserError(f"{where}: {MANIFEST} is larger than {_MAX_MANIFEST_BYTES} bytes; copy it again")
        plain = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{where}: {MANIFEST} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: {MANIFEST} is not JSON; copy it again") from None
    version = plain.get("format_version") if isinstance(plain, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{where} has format version {version!r}, this program reads {FORMAT_VERSION}: update sdxl-ray")
    try:
        return Manifest.model_validate(plain)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{where}: {MANIFEST} is damaged at {path}: {problem['msg']}; copy it again") from None


def _names(folder: Path) -> set[str]:
    """Relative names of the files that make the artifact: neither the manifest nor what stands beside it."""
    names = set()
    for file in folder.rglob("*"):
        if file.is_dir() and not file.is_symlink():
            continue
        name = file.relative_to(folder).as_posix()
        if name == MANIFEST or _stands_beside(name):
            continue
        _require_inside(folder, name)
        names.add(name)
    return names


def _stands_beside(name: str) -> bool:
    """Whether a file belongs to a file manager, git, the hub or a reader: none of them changes what the model is."""
    parts = name.split("/")
    return name in BESIDE or parts[-1] in _LITTER or parts[-1].startswith("._") or parts[0] in _FOLDERS


def _require_inside(folder: Path, name: str) -> None:
    pure = PurePosixPath(name)
    where = f"artifact {str(folder)!r}"
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or pure.as_posix() != name or name in ("", "."):
        raise UserError(f"{where}: {name!r} is not a plain name inside the folder; do not trust this artifact")
    if (folder / name).is_symlink() or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{where}: {name} is a link; copy the file itself into the folder")
