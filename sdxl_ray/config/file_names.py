"""Names of files as people and other systems write them: decomposed accents (macOS), backslashes (Windows), `./`."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from sdxl_ray.errors import closest


def same_name(wanted: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is `wanted` but for accents, slashes and `./`; None when there is none, or several."""
    known = list(names)
    if wanted in known:
        return wanted
    found = [name for name in known if _plain(name) == _plain(wanted)]
    return found[0] if len(found) == 1 else None


def existing(path: Path) -> Path:
    """The path as the disk spells it: `photos/café` with composed accents for a folder with decomposed ones."""
    if path.exists():
        return path
    parent = existing(path.parent) if path.parent != path else path
    name = same_name(path.name, _inside(parent))
    return parent / name if name else path


def did_you_mean(path: Path) -> str:
    """`"; did you mean 'photos/dog'?"` where the first folder or file that is missing has a near one beside it."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    near = closest(missing.name, _inside(missing.parent))
    return f"; did you mean {str(missing.parent / near)!r}?" if near and not missing.exists() else ""


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")


def _inside(folder: Path) -> list[str]:
    try:
        return [child.name for child in folder.iterdir()]
    except OSError:
        return []
