"""Scalars of YAML 1.2's core schema, which keep the text that they were written as until a schema says what they are.

    resolve("010") == 10                 # decimal; `.text` is still "010", for a setting that is text
    resolve("yes") == "yes"              # booleans are true and false, nothing else
    text_of(resolve("1e5")) == "1e5"

YAML 1.1 reads 2024_05, 1:30, 010, 2024-05-01, no and on as something else than what a person means by them.
"""

from __future__ import annotations

import re
from typing import Any

#: Tags and patterns of the core schema (yaml.org/spec/1.2.2, 10.3.2); what matches none of them is text.
NULL = re.compile(r"(?:null|Null|NULL|~)?\Z")
BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_MAX_DIGITS = 400  # longer ones are text: Python refuses to convert some thousands
_BASES = {"0o": 8, "0x": 16}


class WrittenInt(int):
    """A whole number, and its text where that is not what Python would print."""

    text: str

    def __new__(cls, value: int, text: str) -> WrittenInt:
        self = super().__new__(cls, value)
        self.text = text
        return self

    def __reduce__(self) -> tuple[type[WrittenInt], tuple[int, str]]:
        return WrittenInt, (int(self), self.text)


class WrittenFloat(float):
    """A number, and its text where that is not what Python would print."""

    text: str

    def __new__(cls, value: float, text: str) -> WrittenFloat:
        self = super().__new__(cls, value)
        self.text = text
        return self

    def __reduce__(self) -> tuple[type[WrittenFloat], tuple[float, str]]:
        return WrittenFloat, (float(self), self.text)


class WrittenList(list[Any]):
    """A list of a command line, and its text: `data.subject=[sks]` may be the name of a thing."""

    def __init__(self, value: list[Any], text: str) -> None:
        super().__init__(value)
        self.text = text


class WrittenDict(dict[str, Any]):
    """A mapping of a command line, and its text."""

    def __init__(self, value: dict[str, Any], text: str) -> None:
        super().__init__(value)
        self.text = text


class Word(str):
    """The text of a boolean or a null in another spelling than true, false and null; `value` is what it means."""

    value: bool | None

    def __new__(cls, text: str, value: bool | None) -> Word:
        self = super().__new__(cls, text)
        self.value = value
        return self

    def __reduce__(self) -> tuple[type[Word], tuple[str, bool | None]]:
        return Word, (str(self), self.value)


def resolve(text: str) -> Any:
    """A plain scalar's value; `text_of` gives its text back. An empty one is None."""
    if NULL.match(text):
        return None if text in ("", "null") else Word(text, None)
    if BOOL.match(text):
        value = text[0] in "tT"
        return value if text == text.lower() else Word(text, value)
    if len(text) > _MAX_DIGITS:
        return text
    if INT.match(text):
        number = int(text[2:], _BASES[text[:2]]) if text[:2] in _BASES else int(text)
        return number if str(number) == text else WrittenInt(number, text)
    if FLOAT.match(text):
        real = float(text.replace(".", "", 1) if text[-1].isalpha() else text)  # .inf and .nan end in a letter
        return real if repr(real) == text else WrittenFloat(real, text)
    return text


def text_of(value: Any) -> Any:
    """The text of a value as it was written; what has none (a list of a file) as it is."""
    if isinstance(value, WrittenInt | WrittenFloat | WrittenList | WrittenDict):
        return value.text
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return str(value)
    return repr(value) if isinstance(value, int | float) else value


def meaning(value: Any) -> Any:
    """What a scalar means where no schema asks for its text: `Null` is None, `TRUE` is True."""
    return value.value if isinstance(value, Word) else value
