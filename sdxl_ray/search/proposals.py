"""Proposals: what to try next, by Optuna, from the trials there are.

The study is made from a search's records and lives in memory. A stopped trial is given with the scores it had (Optuna's
"pruned": TPE ranks it by how far it came); so is a failed one, without scores, which is worse than any.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sdxl_ray.config.optuna_parameters import contains, distribution, empty_study, encoded
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.search_parameters import Choice, Int, LogUniform
from sdxl_ray.config.search_space import Space
from sdxl_ray.io.search_records import Trial
from sdxl_ray.search._optuna_private import generation_key

if TYPE_CHECKING:
    import optuna


def sampler(space: Space, seed: int) -> optuna.samplers.BaseSampler:
    """Who proposes. seed: another one for every session, or a resumed search would propose what it has tried."""
    from optuna import samplers

    match space.searcher.kind:
        case "random":
            return samplers.RandomSampler(seed=seed)
        case "nsga2":
            return samplers.NSGAIISampler(population_size=max(2, space.searcher.n_startup_trials), seed=seed)
        case _:
            # Parameters are modelled together where all trials have them, and trials that run count as bad ones.
            return samplers.TPESampler(
                n_startup_trials=space.searcher.n_startup_trials, seed=seed, multivariate=True, constant_liar=True
            )


def study_of(space: Space, trials: Sequence[Trial]) -> optuna.Study:
    """A study that knows the trials which have ended."""
    directions = ["maximize" if mode == "max" else "minimize" for mode in space.modes.values()]
    study = empty_study(directions, sampler(space, space.searcher.seed + len(trials)))
    for trial in trials:
        add(study, space, trial)
    return study


def add(study: optuna.Study, space: Space, trial: Trial) -> None:
    """Tell a study of a trial that was not its own proposal; one outside the space's bounds is left out."""
    import optuna

    found = {path: distribution(space.parameters[path]) for path in trial.parameters if path in space.parameters}
    values = {path: encoded(space.parameters[path], trial.parameters[path]) for path in found}
    if not all(contains(found[path], value) for path, value in values.items()):
        return
    state, scores = outcome(space, trial)
    study.add_trial(
        optuna.trial.create_trial(
            state=state,
            values=scores,
            params=values,
            distributions=found,
            system_attrs=_generation(study),
            intermediate_values=intermediate(space, trial),
        )
    )


def _generation(study: optuna.Study) -> dict[str, Any]:
    """What NSGA-II writes on its own proposals, and breeds by: a trial without it would never be a parent."""
    from optuna.samplers import NSGAIISampler
    from optuna.trial import TrialState

    by = study.sampler
    if not isinstance(by, NSGAIISampler) or by.population_size is None:
        return {}
    known = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    return {generation_key(by): known // by.population_size}


def intermediate(space: Space, trial: Trial) -> dict[int, float]:
    """Step -> score, for one metric; Optuna takes none for several."""
    if len(space.metric) > 1 or trial.state == "failed":
        return {}
    return {
        evaluation.step: evaluation.metrics[space.metric[0]]
        for evaluation in trial.evaluations
        if space.metric[0] in evaluation.metrics
    }


def outcome(space: Space, trial: Trial) -> tuple[optuna.trial.TrialState, list[float] | None]:
    """How a trial ended in Optuna's words, and its last scores. Nothing is pruned where there are several metrics."""
    from optuna.trial import TrialState

    scores = [score for name in space.metric if (score := trial.score(name)) is not None]
    if trial.state == "finished" and len(scores) == len(space.metric):
        return TrialState.COMPLETE, scores
    return TrialState.PRUNED if len(space.metric) == 1 else TrialState.FAIL, None


def propose(space: Space, recipe: Recipe, asked: optuna.Trial) -> dict[str, Any]:
    """Path -> value of one proposal, conditions followed."""

    def choose(path: str, parameter: Any) -> Any:
        match parameter:
            case Choice(values=values):
                return json.loads(str(asked.suggest_categorical(path, [json.dumps(value) for value in values])))
            case Int(low=low, high=high, log=log):
                return asked.suggest_int(path, low, high, log=log)
            case _:
                return asked.suggest_float(path, parameter.low, parameter.high, log=isinstance(parameter, LogUniform))

    return space.sample(recipe, choose)
