"""A pydantic error as one line: the setting, its value, what is allowed, the nearest spelling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sdxl_ray.errors import UserError, closest, nearest

M = TypeVar("M", bound=BaseModel)


#: Says what a setting that another program has is called here, or None.
Answer = Callable[[str], str | None]


def validated(
    model: type[M],
    plain: Any,
    where: str,
    answer: Answer = lambda path: None,
    context: dict[str, Any] | None = None,
) -> M:
    """Plain data as a model. Raises UserError, one line that begins with `where`: its first problem."""
    try:
        return model.model_validate(plain, context=context)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error, model, plain, answer)}") from None


def first_problem(
    error: ValidationError, model: type[BaseModel], plain: Any, answer: Answer = lambda path: None
) -> str:
    """The first problem of a pydantic error as one line: path, value, what is allowed.

    An unknown setting before all others: where one is missing too, it is most often that one, misspelt.
    """
    problem = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    location = _place(problem["loc"], plain)
    path = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        siblings = _known_fields(location[:-1], model, plain)
        return f"no setting {path!r}: {answer(path) or _meant(str(location[-1]), siblings, model)}"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], dict | BaseModel) else f" = {problem['input']!r}"
    return f"{path}{given}: {message[0].lower()}{message[1:]}" if path else message


def _meant(word: str, siblings: list[str], model: type[BaseModel]) -> str:
    """A sibling of nearly the same spelling, else the same name in other sections, else the siblings."""
    close = closest(word, siblings, alike=0.8)
    return (None if close else elsewhere(model, word)) or nearest(word, siblings)


def elsewhere(model: type[BaseModel], word: str) -> str | None:
    """`"did you mean 'optim.lr'?"` where settings of that name are in other sections."""
    found = [path for path in paths(model) if path.rpartition(".")[2] == word]
    return f"did you mean {' or '.join(map(repr, found[:3]))}?" if found else None


def paths(model: type[BaseModel]) -> Iterator[str]:
    """Every setting below a section, shallow ones first."""
    below = []
    for name, field in _fields(model).items():
        yield name
        below += [
            f"{name}.{path}"
            for section in _classes(field.annotation)
            if issubclass(section, BaseModel)
            for path in paths(section)
        ]
    yield from dict.fromkeys(sorted(below, key=lambda path: path.count(".")))


def _place(location: tuple[int | str, ...], plain: Any) -> list[int | str]:
    """A location as the file has it: without the tags of unions by `kind`, which pydantic puts there."""
    kept: list[int | str] = []
    for part in location:
        if isinstance(plain, Mapping):
            if plain.get("kind") == part and part not in plain:
                continue
            plain = plain.get(part)
        else:
            # A location may lie past the end: the second value of a pair that has one.
            plain = plain[part] if isinstance(plain, list) and isinstance(part, int) and part < len(plain) else None
        kept.append(part)
    return kept


def _known_fields(parents: list[Any], model: type[BaseModel], plain: Any) -> list[str]:
    here: type[BaseModel] | None = model
    entry = False  # the key is a name of the user's own, in a mapping of sections
    for key in parents:
        if here is None:
            return []
        if isinstance(plain, list):  # an index: each entry is the section that the list is of
            plain = plain[key]
            continue
        if not entry:
            field = _fields(here).get(str(key))
            here = _section(here, str(key), plain)
        entry = not entry and field is not None and get_origin(field.annotation) is dict
        plain = plain.get(key) if isinstance(plain, Mapping) else None
    return list(_fields(here)) if here is not None else []


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by the names that a file gives them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _section(model: type[BaseModel], key: str, plain: Any) -> type[BaseModel] | None:
    """The section class behind field `key`, following unions by their `kind`."""
    field = _fields(model).get(key)
    if field is None:
        return None
    candidates = [c for c in _classes(field.annotation) if issubclass(c, BaseModel)]
    value = plain.get(key) if isinstance(plain, Mapping) else None
    kind = value.get("kind") if isinstance(value, Mapping) else None
    for candidate in candidates:
        if "kind" in candidate.model_fields and candidate.model_fields["kind"].default == kind:
            return candidate
    return candidates[0] if candidates else None


def _classes(annotation: Any) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [c for arg in getattr(annotation, "__args__", ()) for c in _classes(arg)]
