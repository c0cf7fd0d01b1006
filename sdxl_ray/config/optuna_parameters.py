"""Search parameters in Optuna's terms."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sdxl_ray.config.search_parameters import Choice, Int, LogUniform

if TYPE_CHECKING:
    import optuna


def distribution(parameter: Any) -> optuna.distributions.BaseDistribution:
    """A parameter as Optuna has it. Choices are JSON texts, since lists are none of Optuna's categories."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match parameter:
        case Choice(values=values):
            return CategoricalDistribution([json.dumps(value) for value in values])
        case Int(low=low, high=high, log=log):
            return IntDistribution(low, high, log=log)
        case _:
            return FloatDistribution(parameter.low, parameter.high, log=isinstance(parameter, LogUniform))


def encoded(parameter: Any, value: Any) -> Any:
    """A value as the study has it."""
    return json.dumps(value) if isinstance(parameter, Choice) else value


def empty_study(directions: list[str], by: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """A study in memory."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it logs every study and trial
    return optuna.create_study(sampler=by, directions=directions)


def contains(known: Any, value: Any) -> bool:
    """Whether a distribution of `distribution` has this value."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    try:
        number = known.to_internal_repr(value)
    except (TypeError, ValueError):  # a value of another type, or none of the choices
        return False
    if isinstance(known, CategoricalDistribution):
        return True
    whole = not isinstance(known, IntDistribution) or float(number).is_integer()
    return bool(whole and known.low <= number <= known.high)
