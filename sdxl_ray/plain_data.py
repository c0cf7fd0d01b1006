"""Plain data from YAML files and command lines: reading, numbers, inheritance, dotted paths. It knows no schema."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from sdxl_ray.errors import UserError, nearest


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
        plain = yaml.load(text, _Strict) or {}
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number that is none, as 0x_
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{kind} {name_or_path!r} is not YAML{line}: {getattr(error, 'problem', error)}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{kind} {name_or_path!r} is a {type(plain).__name__}, not a mapping of sections")
    parent = plain.pop("extends", None)
    if parent and _is_file(name_or_path, folder) and _is_file(str(parent), folder):
        parent = os.path.normpath(Path(name_or_path).parent / str(parent))
    below = read(str(parent), folder, kind, (*seen, name_or_path)) if parent else {}
    return {key: merge(below.get(key), plain.get(key, below.get(key))) for key in {**below, **plain}}


#: YAML 1.1 wants a dot in them, people do not.
_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Strict(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: PyYAML would drop the first without a word.

    Numbers such as 1e-4 are numbers, and nothing is a date: no setting is one.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
        plain: dict[Any, Any] = super().construct_mapping(node, deep)
        return plain


_Strict.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


class _OneLine(_Strict):
    """The same without comments: what a command line says after a # is meant."""

    def scan_to_next_token(self) -> None:
        while self.peek() == " " or self.scan_line_break():  # type: ignore[no-untyped-call]  # yaml's own gap
            if self.peek() == " ":
                self.forward()


def _is_file(name_or_path: str, folder: Traversable) -> bool:
    return name_or_path not in shipped(folder) and name_or_path.endswith((".yaml", ".yml"))


def _text(name_or_path: str, folder: Traversable, kind: str) -> str:
    if name_or_path in shipped(folder):
        return (folder / f"{name_or_path}.yaml").read_text()
    if not name_or_path.endswith((".yaml", ".yml")):
        known = nearest(name_or_path, shipped(folder))
        raise UserError(f"no {kind} named {name_or_path!r}: {known}, or give a .yaml file")
    try:
        return Path(name_or_path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{kind} {name_or_path!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{kind} {name_or_path!r} cannot be read: it is not UTF-8 at byte {error.start}") from None


def merge(below: Any, above: Any) -> Any:
    """`above` laid over `below`, mapping by mapping; settings of another `kind` do not shine through."""
    both = isinstance(below, dict) and isinstance(above, dict)
    if not both or below.get("kind") != above.get("kind", below.get("kind")):
        return above
    return {**below, **{key: merge(below.get(key), value) for key, value in above.items()}}


def numbers(value: Any) -> Any:
    """The same with strings such as `1e-4` as numbers, for what another program has read as YAML 1.1."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return _number(value)


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) or value.lower().strip("+-") in ("nan", "inf") else value


def assignment(word: str) -> tuple[str, Any]:
    """`"optim.lr=1e-4"` -> `("optim.lr", 1e-4)`. Raises UserError when there is no path or no `=`."""
    path, equals, text = word.partition("=")
    if not equals or not path:
        raise UserError(f"{word!r} is not a setting: write path=value, for example optim.lr=1e-4")
    try:
        return path, _said(text)
    except (yaml.YAMLError, ValueError):
        return path, text


def _said(text: str) -> Any:
    """A value of the command line: lists, mappings and quoted text are YAML, anything else is one plain scalar."""
    loader = _OneLine(text)
    if text.lstrip()[:1] in ("[", "{", '"', "'"):
        return loader.get_single_data()
    text = text.strip()
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # yaml's own gap
    return loader.construct_object(yaml.ScalarNode(tag, text))


def assign(plain: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in place; a section that is off (None) is switched on.

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
            raise UserError(f"no setting {path!r}: {nearest(key, known)}")
        if here[key] is None:
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
