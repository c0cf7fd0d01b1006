"""What a section makes of a scalar as it was written: text keeps its text, numbers are decimal, booleans true or false.

A file or a command line does not know what a setting is; its section does. `typed` takes the schema that pydantic has
built from the annotations and puts one conversion in front of each type, so that no setting can forget it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic_core import core_schema

from sdxl_ray.config.scalars import Word, meaning, resolve, text_of

_SCALARS = (str, int, float)  # bool is an int
_INSIDE = ("default", "model-field", "function-before", "function-after", "function-wrap")


def typed(schema: Any) -> Any:
    """The same schema with the conversions in it. Sections inside have theirs already."""
    kind = schema["type"]
    if kind in _INSIDE or kind == "nullable":
        inner = {**schema, "schema": typed(schema["schema"])}
        return _before(_null, inner) if kind == "nullable" else inner
    if kind == "union":
        choices = [choice if isinstance(choice, tuple) else (choice, choice["type"]) for choice in schema["choices"]]
        return {**schema, "choices": [(typed(choice), label) for choice, label in choices]}
    if kind == "dict":
        return {**schema, **{key: typed(schema[key]) for key in ("keys_schema", "values_schema") if key in schema}}
    if kind == "tuple":
        items = schema["items_schema"]
        words = any(_is_text(item) for item in items)
        count = None if "variadic_item_index" in schema else len(items)
        return _before(partial(_list, words, count), {**schema, "items_schema": [typed(item) for item in items]})
    conversions: dict[str, Callable[[Any], Any]] = {
        "str": text_of,
        "bool": _flag,
        "int": _number,
        "float": _number,
    }
    if kind == "literal" and len(schema["expected"]) > 1:  # the one value of a `kind` tells sections apart
        return _before(partial(_choice, schema["expected"]), schema)
    return _before(conversions[kind], schema) if kind in conversions else schema


def typed_model(schema: Any) -> Any:
    """The schema of a section with its fields typed."""
    if schema["type"] == "model-fields":
        return {**schema, "fields": {name: typed(field) for name, field in schema["fields"].items()}}
    if schema["type"] in (*_INSIDE, "model", "definitions"):
        return {**schema, "schema": typed_model(schema["schema"])}
    return schema


def _before(function: Callable[[Any], Any], schema: Any) -> Any:
    return core_schema.no_info_before_validator_function(function, schema)


def _is_text(schema: Any) -> bool:
    return schema["type"] == "str" or (schema["type"] in _INSIDE and _is_text(schema["schema"]))


def _null(value: Any) -> Any:
    return None if isinstance(value, Word) and value.value is None else value


def _flag(value: Any) -> bool:
    if isinstance(value, str):
        value = meaning(resolve(value))
    if not isinstance(value, bool):
        raise ValueError("should be true or false")
    return value


def _number(value: Any) -> Any:
    """A number, also one in quotes: Ray Serve gives every argument of a command line as text."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    if not isinstance(value, str) or isinstance(value, Word):
        return value
    number = _parsed(value)
    if number is None:
        plain = next((other for other in _rewritten(value) if _parsed(other) is not None), None)
        raise ValueError(f"should be a number{f', write {plain}' if plain else ''}")
    return number


def _parsed(text: str) -> int | float | None:
    number = resolve(text.strip())
    return number if isinstance(number, int | float) and not isinstance(number, bool) else None


def _rewritten(text: str) -> tuple[str, str]:
    """Spellings that other programs read as numbers: 1_000, and a decimal comma."""
    return text.strip().replace("_", ""), text.strip().replace(",", ".")


def _choice(expected: Sequence[Any], value: Any) -> Any:
    """One of a few values: `none` and `1` are text where the choices are text, numbers where they are numbers."""
    text = text_of(value)
    if not isinstance(text, str):
        return value
    if text in expected or isinstance(value, bool):
        return text
    number = _parsed(text)
    return value if number is None else number


def _list(words: bool, count: int | None, value: Any) -> Any:
    """One scalar is a list of one; numbers may be separated by commas, text has commas of its own."""
    if isinstance(value, _SCALARS):
        value = names(value) if isinstance(value, str) and not words else [value]
    if count is not None and isinstance(value, list | tuple) and len(value) != count:
        raise ValueError(f"should be {count} values, as [{', '.join('abcdefgh'[:count])}]")
    return value


def names(value: Any) -> Any:
    """`to_q, to_k` as a list: for settings whose entries never have a comma in them."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value
