"""A load profile: what a load test sends and when, whoever answers. Shared by `sdxl-ray loadtest` and experiments.

scenario: server          # singlestream: one after another; server: Poisson arrivals; offline: all at once
rates: [2, 4]             # queries/s of scenario server
queries: 459              # in every run; a p99 needs that many
steps: {4: 1, 20: 3}      # or one number; a mix is given with weights
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sdxl_ray.config.schema import NonNegativeFloat, PositiveFloat, PositiveInt, Section

Scenario = Literal["singlestream", "server", "offline"]
Steps = Annotated[int, Field(ge=1, le=1000)]


class Bound(Section):
    """A search for the highest rate that keeps the 99th percentile of latency at or under `p99_ms`, arm by arm."""

    p99_ms: PositiveFloat = Field(description="milliseconds")
    probes: Annotated[int, Field(ge=2, le=20)] = Field(6, description="runs of the search for each arm")
    queries: PositiveInt = Field(459, description="queries of each of these runs")


def _mix(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return {value: 1.0}
    # Keys of YAML and of JSON may be words.
    return {int(k) if str(k).isdigit() else k: v for k, v in value.items()} if isinstance(value, dict) else value


class LoadProfile(Section):
    """What is sent and when. Every arm gets the same prompts, seeds, step counts and arrival times."""

    scenario: Scenario = Field(
        "server", description="of MLPerf: singlestream (one after another), server (Poisson), offline (all at once)"
    )
    rates: tuple[PositiveFloat, ...] = Field(
        (), description="queries/s, of scenario server only; several give latency against rate"
    )
    queries: PositiveInt = Field(32, description="least queries of a run; a p99 needs 459 over all rounds")
    duration_s: NonNegativeFloat = Field(0.0, description="least seconds of arrivals of a server run")
    rounds: PositiveInt = Field(2, description="runs of each arm and rate; every other round goes backwards (ABBA)")
    warmup: Annotated[int, Field(ge=0)] = Field(2, description="queries before each run, not recorded")
    concurrency: PositiveInt = Field(16, description="most queries in flight in scenario offline")
    timeout_s: PositiveFloat = Field(60.0, description="seconds until a query counts as failed")
    prompts: str = Field("tiny", description="shipped list, .yaml or .txt; its final prompts are sent")
    subject: str = Field("a dog", description="what the prompts are about, the same words for every arm")
    steps: Annotated[dict[Steps, PositiveFloat] | None, BeforeValidator(_mix)] = Field(
        None, description="denoising steps: a number, or a mix {steps: weight}; default: 20, in an experiment its own"
    )
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="default: 4.0, in an experiment its own"
    )
    size: Annotated[str, Field(pattern=r"^(auto|\d{2,4}x\d{2,4})$")] = Field("auto", description="pixels, as 1024x1024")
    deployment: Literal["shared", "isolated"] = Field(
        "shared", description="isolated: arms that share replicas are refused; shared: they may. The rows say what was"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of arrivals, prompts and images")
    bound: Bound | None = Field(None, description="search the highest rate that keeps p99 under a bound")

    @model_validator(mode="after")
    def _rates_are_of_the_scenario(self) -> LoadProfile:
        if self.scenario == "server" and not self.rates:
            raise ValueError("scenario server needs rates, queries a second: for example rates=[2]")
        if self.scenario != "server":
            for name in ("rates", "duration_s", "bound"):
                if getattr(self, name):
                    raise ValueError(f"{name} belongs to scenario server, this is {self.scenario}: leave it out")
        if self.steps == {}:
            raise ValueError("steps is empty: give a number, or a mix as {4: 1, 20: 3}")
        if len(set(self.rates)) < len(self.rates):
            raise ValueError(f"rates {list(self.rates)}: the same rate twice")
        return self

    def queries_at(self, rate: float) -> int:
        """Queries of a run: enough for the count and for the duration."""
        return max(self.queries, math.ceil(rate * self.duration_s))
