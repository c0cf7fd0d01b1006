"""`sdxl-ray config`: every setting that a recipe has, or one recipe with nothing left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import typer

from sdxl_ray.cli.arguments import AsJson, BaseId, Settings, print_json, read_recipe

EXAMPLES = ("sdxl-ray config", "sdxl-ray config lora optim.lr=5e-5")


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
    """One line of the reference. `default` and `values` are text as YAML would have it."""

    path: str
    values: str
    default: str
    help: str


def run(
    name: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="recipe to print; default: the reference")
    ] = None,
    settings: Settings = None,
    base: BaseId = None,
    json: AsJson = False,
) -> None:
    """Print every setting and its default, or one recipe in full."""
    if name is not None:
        recipe = read_recipe(name, settings, base).model_dump(mode="json")
        if json:
            print_json(recipe)
        else:
            from sdxl_ray.config import yaml_loader

            typer.echo(yaml_loader.dump(recipe), nl=False)
        return
    lines = list(reference())
    if json:
        print_json([line._asdict() for line in lines])
        return
    for line in lines:
        typer.echo(f"{line.path}: {line.values} = {line.default}" + (f"\n    {line.help}" if line.help else ""))


def reference() -> Iterator[SettingLine]:
    """Every setting of a Recipe, read from its JSON schema; the settings of a kind say so in brackets."""
    from sdxl_ray.config.recipe import Recipe

    schema = Recipe.model_json_schema()
    yield from _settings(schema, "", schema["$defs"])


def _settings(section: dict[str, Any], prefix: str, known: dict[str, Any]) -> Iterator[SettingLine]:
    for name, field in section["properties"].items():
        choices = [_resolve(choice, known) for choice in field.get("anyOf") or field.get("oneOf") or [field]]
        sections = [choice for choice in choices if "properties" in choice]
        path = f"{prefix}{name}"
        if sections and len(choices) > len(sections):
            values = " | ".join("section" if choice in sections else _values(choice, known) for choice in choices)
            yield SettingLine(path, values, _text(field.get("default")), field.get("description", ""))
        elif not sections:
            values = " | ".join(_values(choice, known) for choice in choices)
            default = _text(field["default"]) if "default" in field else "(required)"
            yield SettingLine(path, values, default, field.get("description", ""))
        for choice in sections:
            kind = choice["properties"].get("kind", {}).get("const")
            mark = f" [kind {kind}]" if len(sections) > 1 else ""
            for setting in _settings(choice, f"{path}.", known):
                yield setting._replace(path=setting.path + mark)


def _resolve(schema: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    target = schema.get("$ref")
    resolved: dict[str, Any] = known[target.rpartition("/")[2]] if target else schema
    return resolved


def _values(schema: dict[str, Any], known: dict[str, Any]) -> str:
    """The values that a schema without sections admits, in a few words."""
    if "enum" in schema:
        return " | ".join(map(_text, schema["enum"]))
    if "const" in schema:
        return _text(schema["const"])
    if "prefixItems" in schema:
        return "[" + ", ".join(_values(item, known) for item in schema["prefixItems"]) + "]"
    inner = schema.get("items") or schema.get("additionalProperties")
    word = _WORDS[schema["type"]] + (_values(_resolve(inner, known), known) if inner else "")
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
