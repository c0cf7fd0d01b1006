"""Every setting of a settings model as one line: path, values, default, meaning. Read from the model's JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

#: JSON schema's types and limits in words.
_WORDS = {
    "array": "list of ",
    "boolean": "true | false",
    "integer": "whole number",
    "null": "null",
    "number": "number",
    "object": "mapping to ",
    "string": "text",
}
_SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


class SettingLine(NamedTuple):
    """One line of a reference. `default` and `values` are text as YAML would have it."""

    path: str
    values: str
    default: str
    help: str


def reference(model: type[BaseModel]) -> Iterator[SettingLine]:
    """Every setting of a model, sections followed.

    Settings of one kind of a section are marked with `[kind KIND]`; NAME stands for a key of the user's own in a
    mapping of sections, `[]` for an item of a list of sections.
    """
    schema = model.model_json_schema()
    yield from _settings(schema, "", schema.get("$defs", {}))


def _settings(section: dict[str, Any], prefix: str, known: dict[str, Any]) -> Iterator[SettingLine]:
    for name, field in section["properties"].items():
        choices = _choices(field, known)
        sections = [choice for choice in choices if "properties" in choice]
        path, help_text = f"{prefix}{name}", field.get("description", "")
        if sections and len(choices) > len(sections):
            values = " | ".join("section" if choice in sections else _values(choice, known) for choice in choices)
            yield SettingLine(path, values, _text(field.get("default")), help_text)
        elif not sections:
            values = " | ".join(_values(choice, known) for choice in choices)
            default = _text(field["default"]) if "default" in field else "(required)"
            yield SettingLine(path, values, default, help_text)
        yield from _of_sections(sections, path, known)
        for choice in choices:
            if inner := _inner(choice):
                below = [item for item in _choices(inner, known) if "properties" in item]
                yield from _of_sections(below, f"{path}[]" if "items" in choice else f"{path}.NAME", known)


def _of_sections(sections: list[dict[str, Any]], path: str, known: dict[str, Any]) -> Iterator[SettingLine]:
    for section in sections:
        kind = section["properties"].get("kind", {}).get("const")
        mark = f" [kind {kind}]" if len(sections) > 1 else ""
        for setting in _settings(section, f"{path}.", known):
            yield setting._replace(path=setting.path + mark)


def _choices(schema: dict[str, Any], known: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a schema, with references resolved."""
    target = schema.get("$ref")
    resolved: dict[str, Any] = known[target.rpartition("/")[2]] if target else schema
    alternatives = resolved.get("anyOf") or resolved.get("oneOf")
    return [found for one in alternatives for found in _choices(one, known)] if alternatives else [resolved]


def _inner(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a list's items or a mapping's values, where it says one."""
    patterns = list(schema.get("patternProperties", {}).values())  # a mapping whose keys have a pattern
    inner = schema.get("items") or schema.get("additionalProperties") or (patterns[0] if patterns else None)
    return inner if isinstance(inner, dict) else None


def _values(schema: dict[str, Any], known: dict[str, Any]) -> str:
    """The values that a schema without sections admits, in a few words."""
    if "enum" in schema:
        return " | ".join(map(_text, schema["enum"]))
    if "const" in schema:
        return _text(schema["const"])
    if "prefixItems" in schema:
        items = [" | ".join(_values(one, known) for one in _choices(item, known)) for item in schema["prefixItems"]]
        return f"[{', '.join(items)}]"
    if "type" not in schema:
        return "any value"
    word, inner = _WORDS[schema["type"]], _inner(schema)
    if inner is not None:
        below = _choices(inner, known)
        sections = any("properties" in one for one in below)
        word += "sections" if sections else " | ".join(dict.fromkeys(_values(one, known) for one in below))
    elif schema["type"] in ("array", "object"):
        word += "any values"
    return " ".join([word, *(f"{sign} {schema[key]}" for key, sign in _SIGNS.items() if key in schema)])


def _text(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case dict() if value:
            return "(see below)"
        case list() | tuple():
            return "[" + ", ".join(map(_text, value)) + "]"
        case _:
            return str(value)
