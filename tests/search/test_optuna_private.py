"""Optuna's private name is there, and means what `search/_optuna_private.py` says."""

from __future__ import annotations

import optuna
import pytest
from optuna.samplers import NSGAIISampler

from sdxl_ray.config.optuna_parameters import contains, distribution
from sdxl_ray.config.search_parameters import Choice, Int, LogUniform, Uniform
from sdxl_ray.search._optuna_private import generation_key


def test_nsga2_keeps_a_trials_generation_under_this_key() -> None:
    by = NSGAIISampler(population_size=2, seed=0)
    why = f"optuna {optuna.__version__} renamed what search/_optuna_private.py uses"
    assert hasattr(by, "_get_generation_key"), why
    study = optuna.create_study(sampler=by)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    found = [trial.system_attrs.get(generation_key(by)) for trial in study.trials]
    assert found == [0, 0, 1], f"{why}: {found}"


@pytest.mark.parametrize(
    ("parameter", "inside", "outside"),
    [
        (Choice(kind="choice", values=["a", "b"]), ['"a"', '"b"'], ['"c"', "a", 1]),
        (Int(kind="randint", low=1, high=8), [1, 4, 8], [0, 9, 2.5, "many", None]),
        (LogUniform(kind="loguniform", low=1e-4, high=1e-1), [1e-4, 0.01, 0.1], [0, 1, -1, "fast"]),
        (Uniform(kind="uniform", low=-1, high=1), [-1, 0, 1.0], [1.1, float("nan"), float("inf")]),
    ],
)
def test_a_distribution_has_the_values_of_its_parameter(
    parameter: object, inside: list[object], outside: list[object]
) -> None:
    known = distribution(parameter)
    assert [value for value in inside if not contains(known, value)] == []
    assert [value for value in outside if contains(known, value)] == []
    for value in inside:  # Optuna agrees
        optuna.trial.create_trial(value=0.0, params={"x": value}, distributions={"x": known})
