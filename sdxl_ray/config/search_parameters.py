"""The kinds of parameters that a search may have: what a value is drawn from, and when there is one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from sdxl_ray.config.scalars import meaning
from sdxl_ray.config.schema import Section

_Finite = Annotated[float, Field(allow_inf_nan=False)]


def _meant(value: Any) -> Any:
    """Values to compare: `True` and `~` are true and null, whatever setting they are of."""
    if isinstance(value, dict):
        return {key: _meant(item) for key, item in value.items()}
    return [_meant(item) for item in value] if isinstance(value, list | tuple) else meaning(value)


class _Parameter(Section):
    when: Annotated[dict[str, Any], BeforeValidator(_meant)] = Field(
        {}, description="path -> value, or list of values: only then it is a parameter"
    )


class _Range(_Parameter):
    @model_validator(mode="after")
    def _right_way_round(self) -> Any:
        low, high = getattr(self, "low"), getattr(self, "high")  # noqa: B009 - fields of the kinds below
        if low >= high:
            raise ValueError(f"low {low:g} must be below high {high:g}: swap them")
        return self


class LogUniform(_Range):
    """A number whose logarithm is uniform: rates, and whatever spans powers of ten."""

    kind: Literal["loguniform"]
    low: PositiveFloat
    high: PositiveFloat


class Uniform(_Range):
    """A number."""

    kind: Literal["uniform"]
    low: _Finite
    high: _Finite


class Int(_Range):
    """A whole number, both ends included. log: small ones as often as large ones."""

    kind: Literal["randint"]
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _has_a_logarithm(self) -> Int:
        if self.log and self.low < 1:
            raise ValueError(f"low {self.low} has no logarithm: start at 1, or leave log out")
        return self


class Choice(_Parameter):
    """One of a few values; they have no order."""

    kind: Literal["choice"]
    values: Annotated[tuple[Any, ...], BeforeValidator(_meant)] = Field(min_length=1)


Parameter = Annotated[LogUniform | Uniform | Int | Choice, Field(discriminator="kind")]


def tried(parameter: Any) -> Iterator[Any]:
    """Both ends and something between, or every choice: a fraction where a whole number is wanted shows between."""
    match parameter:
        case Choice(values=values):
            yield from values
        case Int(low=low, high=high):
            yield from (low, high)
        case LogUniform(low=low, high=high):
            yield from (low, high, math.exp((2 * math.log(low) + math.log(high)) / 3))
        case Uniform(low=low, high=high):
            yield from (low, high, (2 * low + high) / 3)
