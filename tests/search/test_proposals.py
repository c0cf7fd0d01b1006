"""Proposals: inside the space, conditions followed, better than chance, and aware of what was tried before."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest

from sdxl_ray.config.recipe import override
from sdxl_ray.config.search_space import Space
from sdxl_ray.io.search_records import Trial, TrialScores
from sdxl_ray.report import importance
from sdxl_ray.search import proposals

PARAMETERS: dict[str, Any] = {
    "optim.lr": {"kind": "loguniform", "low": 1e-5, "high": 1e-1},
    "tuning.rank": {"kind": "choice", "values": [2, 4, 8]},
    "tuning.text_encoders": {"kind": "choice", "values": [[], [1, 2]]},
    "optim.batch_size": {"kind": "randint", "low": 1, "high": 8, "log": True},
    "objective.weighting": {"kind": "choice", "values": ["none", "min_snr"]},
    "objective.snr_gamma": {"kind": "uniform", "low": 1, "high": 9, "when": {"objective.weighting": "min_snr"}},
}


def space(kind: str = "tpe", **changes: Any) -> Space:
    """The space of these tests."""
    plain = {"recipe": "tiny_lora", "budget": {"trials": 9}, "parameters": PARAMETERS}
    plain |= {"searcher": {"kind": kind, "seed": 3}}
    return Space.model_validate(plain | changes)


def ended(number: int, parameters: dict[str, Any], score: float | None, state: Any = "finished") -> Trial:
    evaluations = [] if score is None else [TrialScores(100, {"quality": score, "pres": score}, 1.0)]
    return Trial(number, parameters, 100, "run", state, evaluations, kept=100)


def quality(parameters: dict[str, Any]) -> float:
    """Best at a rate of 1e-3; nothing else matters."""
    return -abs(math.log10(parameters["optim.lr"]) + 3)


def searched(kind: str, count: int) -> list[float]:
    """The scores of `count` proposals in a row."""
    mine, scores = space(kind), list[float]()
    study = proposals.study_of(mine, [])
    for _ in range(count):
        asked = study.ask()
        scores.append(quality(proposals.propose(mine, mine.start({}), asked)))
        study.tell(asked, scores[-1])
    return scores


def test_every_proposal_is_a_recipe() -> None:
    mine = space("random")
    recipe = mine.start({})
    study = proposals.study_of(mine, [])
    seen = [proposals.propose(mine, recipe, study.ask()) for _ in range(40)]
    for parameters in seen:
        override(recipe, parameters)
        assert ("objective.snr_gamma" in parameters) == (parameters["objective.weighting"] == "min_snr")
    assert {tuple(parameters["tuning.text_encoders"]) for parameters in seen} == {(), (1, 2)}
    assert len({parameters["optim.lr"] for parameters in seen}) == 40


def test_tpe_learns_where_random_does_not() -> None:
    late = {kind: sorted(searched(kind, 40)[20:])[10] for kind in ("tpe", "random")}
    assert late["tpe"] > late["random"] + 0.3  # the median of the second half, in powers of ten from the best rate


def test_known_trials_are_told_and_not_proposed_again() -> None:
    mine = space("random")
    recipe = mine.start({})
    first = [proposals.propose(mine, recipe, asked) for asked in _asks(proposals.study_of(mine, []), 3)]
    assert first == [proposals.propose(mine, recipe, asked) for asked in _asks(proposals.study_of(mine, []), 3)]
    known = [ended(number, parameters, quality(parameters)) for number, parameters in enumerate(first)]
    study = proposals.study_of(mine, known)
    assert [one.value for one in study.trials] == [trial.score("quality") for trial in known]
    assert proposals.propose(mine, recipe, study.ask()) not in first


def test_a_stopped_trial_keeps_its_scores_and_a_failed_one_is_the_worst() -> None:
    parameters = {"optim.lr": 1e-3, "tuning.rank": 4}
    study = proposals.study_of(
        space(), [ended(0, parameters, 0.4, "stopped"), ended(1, parameters, 0.4, "failed"), ended(2, parameters, 0.5)]
    )
    stopped, failed, done = study.trials
    assert (stopped.state.name, stopped.intermediate_values) == ("PRUNED", {100: 0.4})
    assert (failed.state.name, failed.intermediate_values) == ("PRUNED", {})
    assert (done.state.name, done.value) == ("COMPLETE", 0.5)


def test_a_default_outside_of_the_bounds_is_left_out() -> None:
    assert proposals.study_of(space(), [ended(0, {"optim.lr": 5.0, "tuning.rank": 4}, 0.4)]).trials == []
    assert proposals.study_of(space(), [ended(0, {"optim.lr": 1e-3, "tuning.rank": 3}, 0.4)]).trials == []


def test_several_metrics_are_several_values() -> None:
    mine = space("nsga2", metric=["quality", "pres"], scheduler={"kind": "none"})
    study = proposals.study_of(mine, [ended(0, {"optim.lr": 1e-3}, 0.4), ended(1, {"optim.lr": 1e-3}, None, "failed")])
    assert study.trials[0].values == [0.4, 0.4]
    assert study.trials[1].state.name == "FAIL"
    assert isinstance(study.sampler, optuna.samplers.NSGAIISampler)


def test_nsga2_breeds_from_trials_that_it_did_not_propose() -> None:
    """Of an earlier session, and the default: all are of a generation, and parents of the next."""
    mine = space(
        "nsga2",
        metric=["quality", "pres"],
        scheduler={"kind": "none"},
        searcher={"kind": "nsga2", "n_startup_trials": 3},
    )
    known = [ended(n, {"optim.lr": 10.0 ** -(n + 1), "tuning.rank": 4}, n / 10) for n in range(4)]
    study = proposals.study_of(mine, known)
    by = study.sampler
    assert isinstance(by, optuna.samplers.NSGAIISampler)
    assert [len(by.get_population(study, generation)) for generation in (0, 1)] == [3, 1]
    assert {trial.number for trial in by.get_parent_population(study, 1)} == {0, 1, 2}
    asked = study.ask()
    proposals.propose(mine, mine.start({}), asked)
    assert by.get_trial_generation(study, study.trials[asked.number]) == 1


def test_importance_names_the_parameter_that_decides() -> None:
    mine = space("random")
    study = proposals.study_of(mine, [])
    found = [proposals.propose(mine, mine.start({}), asked) for asked in _asks(study, 30)]
    trials = [ended(number, parameters, quality(parameters)) for number, parameters in enumerate(found)]
    shares = importance.importance(mine, trials, "quality", "max")
    assert shares is not None
    assert max(shares, key=lambda path: shares[path]) == "optim.lr"
    assert sum(shares.values()) == pytest.approx(1)
    assert importance.importance(mine, trials[: importance.LEAST_TRIALS - 1], "quality", "max") is None


def test_a_score_of_zero_counts() -> None:
    """Quality is 0 for every trial that is no better than the base: most of a search, at first."""
    mine = space("random")
    study = proposals.study_of(mine, [])
    found = [proposals.propose(mine, mine.start({}), asked) for asked in _asks(study, importance.LEAST_TRIALS)]
    trials = [ended(number, parameters, float(number % 2)) for number, parameters in enumerate(found)]
    assert importance.importance(mine, trials, "quality", "max") is not None


def _asks(study: optuna.Study, count: int) -> list[optuna.Trial]:
    return [study.ask() for _ in range(count)]
