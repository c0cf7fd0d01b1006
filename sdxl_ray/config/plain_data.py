"""Plain data from YAML files and command lines: reading, numbers, inheritance, dotted paths. It knows no schema."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from sdxl_ray.config import yaml_loader
from sdxl_ray.config.scalars import meaning, text_of
from sdxl_ray.config.text_files import read_text
from sdxl_ray.errors import UserError, closest, nearest
from sdxl_ray.paths import local_folder


def shipped(folder: Traversable) -> list[str]:
    """Names of the YAML files in a folder of the package."""
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def read(name_or_path: str, folder: Traversable, kind: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A mapping from a shipped file by name or from a path, merged over the file that its `extends` names.

    `kind` is what messages call it; a file that is extended is named as seen from the one that extends it.
    Raises UserError: no such name (nearest), unreadable, not YAML (line), a key that stands twice (line), a circle.
    """
    if name_or_path in seen:
        raise UserError(f"{kind} {name_or_path!r} extends itself: {' -> '.join((*seen, name_or_path))}")
    text = _text(name_or_path, folder, kind)
    try:
        plain = yaml_loader.load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{kind} {name_or_path!r} is not YAML{line}: {getattr(error, 'problem', error)}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{kind} {name_or_path!r} is a {type(plain).__name__}, not a mapping of sections")
    named = plain.pop("extends", None)
    parent = "" if named is None else str(text_of(named))
    if parent and _is_file(name_or_path, folder) and _is_file(parent, folder):
        parent = os.path.normpath(local_folder(name_or_path).parent / local_folder(parent))
    below = read(parent, folder, kind, (*seen, name_or_path)) if parent else {}
    return {key: merge(below.get(key), plain.get(key, below.get(key))) for key in {**below, **plain}}


def _is_file(name_or_path: str, folder: Traversable) -> bool:
    return name_or_path not in shipped(folder) and name_or_path.endswith((".yaml", ".yml"))


def _text(name_or_path: str, folder: Traversable, kind: str) -> str:
    if name_or_path in shipped(folder):
        return (folder / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    if not name_or_path.endswith((".yaml", ".yml")):
        raise UserError(f"no {kind} named {name_or_path!r}: {_instead(name_or_path, folder, kind)}")
    return read_text(local_folder(name_or_path), f"{kind} {name_or_path!r}")


def _instead(word: str, folder: Traversable, kind: str) -> str:
    if "=" in word:
        return f"the {kind} comes before the settings, for example {shipped(folder)[0]} {word}"
    if word.endswith((".toml", ".json", ".ini", ".cfg")) or Path(word).is_file():
        return f"its file is a .yaml; start from one that is shipped ({', '.join(shipped(folder))})"
    return f"{nearest(word, shipped(folder))}, or give a .yaml file"


def merge(below: Any, above: Any) -> Any:
    """`above` laid over `below`, mapping by mapping; settings of another `kind` do not shine through."""
    both = isinstance(below, dict) and isinstance(above, dict)
    if not both or below.get("kind") != above.get("kind", below.get("kind")):
        return above
    return {**below, **{key: merge(below.get(key), value) for key, value in above.items()}}


def assignment(word: str) -> tuple[str, Any]:
    """`"optim.lr=1e-4"` -> `("optim.lr", 1e-4)`. Raises UserError when there is no path or no `=`."""
    path, equals, text = word.partition("=")
    if not equals or not path:
        raise UserError(f"{word!r} is not a setting: write path=value, for example optim.lr=1e-4")
    try:
        return path, yaml_loader.load_value(text)
    except yaml.YAMLError:
        return path, text


def assign(
    plain: dict[str, Any], path: str, value: Any, answer: Callable[[str], str | None] = lambda path: None
) -> None:
    """Set a dotted path in place; a section that is off (None) is switched on.

    answer: says what a setting that another program has is called here.

    Raises UserError when the path leads through something that is not there, or not a section.
    """
    *parents, last = path.split(".")
    here: Any = plain
    for depth, key in enumerate(parents):
        if not isinstance(here, dict):
            raise UserError(f"no setting {path!r}: {'.'.join(parents[:depth])} is a value, not a section")
        if key not in here:
            # A junk name that was assigned before is found out when the whole is validated: it is no advice.
            known = [name for name in here if str(name).isidentifier()]
            meant = None if closest(key, known) else answer(path)
            raise UserError(f"no setting {path!r}: {meant or nearest(key, known)}")
        if meaning(here[key]) is None:
            here[key] = {}
        here = here[key]
    if not isinstance(here, dict):
        raise UserError(f"no setting {path!r}: {'.'.join(parents)} is a value, not a section")
    if parents and last == "kind" and here.get(last) != value:
        here.clear()  # the settings of one kind mean nothing to another
    both = isinstance(here.get(last), dict) and isinstance(value, dict)
    here[last] = merge(here[last], value) if both else value


def value_at(plain: Mapping[str, Any], path: str, missing: Any = None) -> Any:
    """The value at a dotted path of plain data, or `missing`."""
    here: Any = plain
    for key in path.split("."):
        if not isinstance(here, Mapping) or key not in here:
            return missing
        here = here[key]
    return here
