"""Reading and writing YAML 1.2 (its core schema): the one loader of every file that a user writes for `sdxl_ray`.

Files of Ray and Kubernetes are read by their own programs, as YAML 1.1; what checks those must read what they read.
"""

from __future__ import annotations

from typing import Any

import yaml

from sdxl_ray.config.scalars import BOOL, FLOAT, INT, NULL, WrittenDict, WrittenList, resolve

_TAG = "tag:yaml.org,2002:"
#: No rule for dates, base 60, `yes`, underscores: the core schema has none. The merge key `<<` is kept.
_RULES = {
    None: [(f"{_TAG}{name}", rule) for name, rule in (("null", NULL), ("bool", BOOL), ("int", INT), ("float", FLOAT))],
    "<": [rule for rule in yaml.SafeLoader.yaml_implicit_resolvers["<"] if rule[0] == f"{_TAG}merge"],
}


def load(text: str) -> Any:
    """One document as plain data; scalars keep their text (`scalars.text_of`) and keys of mappings are text.

    Raises yaml.YAMLError, also for a key that stands twice, which PyYAML would drop silently.
    """
    return yaml.load(text, _Loader)


def load_value(text: str) -> Any:
    """A value of a command line: lists, mappings and quoted text are YAML, anything else is one plain scalar."""
    if text.lstrip()[:1] in ("[", "{", '"', "'"):
        value = yaml.load(text, _OneLine)
        if isinstance(value, list):
            return WrittenList(value, text)
        return WrittenDict(value, text) if isinstance(value, dict) else value
    return resolve(text.strip())


def dump(plain: Any) -> str:
    """Plain data as YAML; text that YAML 1.1 or 1.2 would read as another type is quoted."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RULES

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no text", problem_mark=key.start_mark)
            if key.tag == f"{_TAG}merge":
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
            key.tag = f"{_TAG}str"
        plain: dict[Any, Any] = super().construct_mapping(node, deep)
        return plain

    def _scalar(self, node: Any) -> Any:
        text = self.construct_scalar(node)
        return resolve(text)


for _name in ("null", "bool", "int", "float"):
    _Loader.add_constructor(f"{_TAG}{_name}", _Loader._scalar)
_Loader.add_constructor(f"{_TAG}merge", _Loader._scalar)  # `<<` as a value


class _OneLine(_Loader):
    """The same without comments: what a command line says after a # is meant."""

    def scan_to_next_token(self) -> None:
        while self.peek() == " " or self.scan_line_break():  # type: ignore[no-untyped-call]  # yaml's own gap
            if self.peek() == " ":
                self.forward()


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would take for something else."""

    yaml_implicit_resolvers = {
        first: [*rules, *_RULES[None]] for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }
