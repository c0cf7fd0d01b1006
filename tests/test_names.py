"""One name, one meaning: a type name is defined once in the tree."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _types(file: Path) -> Iterator[str]:
    """Classes and capitalised aliases at the top of a module."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper() and "_" not in name:
                yield name


def test_a_type_name_is_defined_once() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for package in ("sdxl_ray", "serve"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for name in _types(file):
                found[name].append(str(file.relative_to(ROOT)))
    assert len(found) > 300
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
