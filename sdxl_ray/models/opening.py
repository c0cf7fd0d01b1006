"""Whatever people have, as an artifact: a run's own folder, or another tool's file, which is imported once.

    open_artifact("runs/dog/artifact")
    open_artifact("downloads/pixel_art.safetensors", Base(id="models/sd_xl_base_1.0.safetensors"))

Imports lie in the user's cache folder, by the content of the file and the base.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from sdxl_ray.cache_folder import cache_root
from sdxl_ray.config.file_names import existing
from sdxl_ray.config.schema import Base
from sdxl_ray.io.artifact import MANIFEST, Artifact
from sdxl_ray.io.safetensors_files import content_revision
from sdxl_ray.models.base_model_files import locate
from sdxl_ray.paths import local_folder

#: Changes whenever the same file would be imported differently.
_IMPORTER = 1

OnNote = Callable[[str], None]


def open_artifact(
    source: str | Path,
    base: Base | None = None,
    *,
    allow_partial: bool = False,
    on_note: OnNote = lambda text: None,
) -> Artifact:
    """The verified artifact of a folder, or the import of another tool's file or folder.

    base: what a foreign file was made on; an artifact knows its own. allow_partial: use a file of which some tensors
    fit nowhere. on_note: gets a line about what was imported.
    Raises UserError: nothing is there, an altered artifact, or a file that `importing` refuses.
    """
    path = existing(local_folder(source))
    if not is_foreign(path):
        return Artifact.open(path)
    from sdxl_ray.models import importing

    base = importing.base_of(path, base)
    facts = [_IMPORTER, content_revision(path, importing.FOLDER_FILES), locate(base).revision, allow_partial]
    folder = cache_root() / "imports" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    if (folder / MANIFEST).is_file():
        return Artifact.open(folder)
    return importing.import_model(path, base, folder, allow_partial=allow_partial, on_note=on_note)


def require_there(source: str | Path) -> None:
    """Raise UserError for a source that does not exist; loads no framework, so it is the first thing to ask."""
    path = existing(local_folder(source))
    if not path.exists():
        Artifact.open(path)


def is_foreign(path: Path) -> bool:
    """Whether a path is no artifact folder, but a file or folder that another tool may have made."""
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return False
        return (path / "model_index.json").is_file() or any(path.glob("*.safetensors"))
    return path.is_file()


def name_of(source: str | Path) -> str:
    """What a model is called that was given no name: after its run, its folder, or its file."""
    path = Path(source).absolute()
    return path.parent.name if path.name == "artifact" else path.name.removesuffix(".safetensors")
