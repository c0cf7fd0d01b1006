"""How adapters become one: the settings of `sdxl-ray merge`, and of an experiment's arms that are merges."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from sdxl_ray.config.schema import PositiveInt, Section
from sdxl_ray.errors import UserError
from sdxl_ray.paths import local_folder

Method = Literal["linear", "concat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
METHODS: tuple[Method, ...] = get_args(Method)
#: Those that are the sum of the changes, up to the rank.
SUMS = frozenset({"linear", "concat", "svd"})
RANDOM = frozenset({"dare_linear", "dare_ties"})
DENSITY = 0.5

Weight = Annotated[float, Field(allow_inf_nan=False)]


class Merging(Section):
    """Refuses what the method would not use: `density` without pruning, `seed` without randomness."""

    method: Method = Field("linear", description="linear, concat, svd, ties, dare_linear, dare_ties, magnitude_prune")
    density: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of values that stay, for the methods that prune; default: 0.5"
    )
    rank: PositiveInt | None = Field(None, description="of the LoRA; default: of the sum, with svd the largest")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(None, description="of dare_linear and dare_ties")
    into: Literal["lora", "model"] = "lora"
    blocks: dict[str, Weight] = Field({}, description="strength by block: down, mid, up, text_encoder, down_blocks.1")

    @model_validator(mode="after")
    def _used(self) -> Merging:
        if self.density is not None and self.method in SUMS:
            raise ValueError(f"density {self.density:g} prunes nothing with method {self.method}: leave it out")
        if self.seed is not None and self.method not in RANDOM:
            raise ValueError(f"seed {self.seed}: nothing is random in method {self.method}, leave it out")
        if self.rank is not None and self.method == "concat":
            raise ValueError(f"rank {self.rank}: method concat keeps every rank, linear and svd take one")
        if self.into == "model" and (self.rank is not None or self.method == "svd"):
            what = "method svd" if self.rank is None else f"rank {self.rank}"
            raise ValueError(f"{what} is of a LoRA, a model holds the whole change: leave it out, or set into to lora")
        return self

    @property
    def kept(self) -> float:
        """The share of values that stay."""
        return DENSITY if self.density is None else self.density

    @property
    def origin(self) -> dict[str, Any]:
        """What a manifest says of it: the settings that decide the result."""
        known: dict[str, Any] = {"method": self.method}
        if self.method not in SUMS:
            known["density"] = self.kept
        if self.method in RANDOM:
            known["seed"] = self.seed or 0
        if self.rank is not None:
            known["rank"] = self.rank
        if self.blocks:
            known["blocks"] = dict(self.blocks)
        return known


def weight_problem(weight: float) -> str | None:
    """What is wrong with a source's weight, or None."""
    if not math.isfinite(weight):
        return f"the weight {weight} is not finite: give a number such as 0.8"
    return "the weight 0 takes nothing of it: leave it out" if weight == 0 else None


def read_blocks(text: str) -> dict[str, float]:
    """`"down=1,mid=0.5"` as `Merging.blocks`. Raises UserError: no finite number, or a name twice."""
    strengths: dict[str, float] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        try:
            strength = float(value)
        except ValueError:
            strength = math.nan
        if not math.isfinite(strength):
            raise UserError(f"--blocks {item!r}: write NAME=STRENGTH with a finite number, for example mid=0.5")
        if name in strengths:
            raise UserError(f"--blocks has {name!r} twice: keep one")
        strengths[name] = strength
    return strengths


class MergedArm(Merging):
    """A merge as an arm. sources: names of arms, ARM-SUBJECT where there are subjects, or artifact folders."""

    sources: Annotated[dict[str, float], Field(min_length=1)]

    @model_validator(mode="after")
    def _weights(self) -> MergedArm:
        for name, weight in self.sources.items():
            if problem := weight_problem(weight):
                raise ValueError(f"sources: {name!r}: {problem}")
        return self


def parse_source(text: str) -> tuple[str, float]:
    """`"runs/dog/artifact=0.8"` -> its path and 0.8; 1 where there is no weight, or where all of it is a path.

    Raises UserError for a weight that is no finite number, or 0.
    """
    path, equals, value = text.rpartition("=")
    if not equals or local_folder(text).exists():
        return text, 1.0
    if not path:
        raise UserError(f"{text!r} names no artifact: write ARTIFACT=WEIGHT, for example runs/dog/artifact=0.8")
    try:
        weight = float(value)
    except ValueError:
        raise UserError(f"{text!r}: the weight {value!r} is no number, and there is no folder of this name") from None
    if problem := weight_problem(weight):
        raise UserError(f"{path!r}: {problem}")
    return path, weight
