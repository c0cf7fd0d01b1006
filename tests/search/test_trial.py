"""What a trial makes of its run's rows; what searcher, scheduler and budget know of earlier sessions."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdxl_ray.config.search_space import Space
from sdxl_ray.errors import RunError
from sdxl_ray.io.records import Recorder
from sdxl_ray.io.search_records import Trial, TrialScores, TrialState
from sdxl_ray.search.optuna_search import BudgetStopper, Clock, Halving, Proposer
from sdxl_ray.search.trial import TrialReporter, recorded

SCORES = {"quality": 0.5, "dino_i": 0.7, "clip_t": 0.3, "pres": 0.4, "class_kid": None}


def space(**changes: Any) -> Space:
    lr = {"kind": "loguniform", "low": 1e-4, "high": 1e-2}
    plain = {"recipe": "tiny_lora", "budget": {"trials": 9}, "parameters": {"optim.lr": lr}}
    return Space.model_validate(plain | changes)


def trial(number: int, state: TrialState, *scores: float) -> Trial:
    evaluations = [
        TrialScores(100 * place, {"quality": score}, 10.0 * place) for place, score in enumerate(scores, start=1)
    ]
    kept = evaluations[-1].step if state == "finished" else None
    return Trial(
        number, {"optim.lr": 1e-3}, 300, f"s/{number}", state, evaluations, ended_s=10.0 * len(evaluations), kept=kept
    )


def test_a_look_ends_with_its_scores() -> None:
    evaluations = TrialReporter(["quality"], scored=True)
    assert evaluations.add({"kind": "step", "step": 100}) is None
    assert evaluations.add({"kind": "validation", "step": 100, "loss": 0.2}) is None
    found = evaluations.add({"kind": "scores", "step": 100, "metrics": SCORES})
    assert found == (100, {"validation_loss": 0.2} | {name: v for name, v in SCORES.items() if v is not None})
    assert TrialReporter(["validation_loss"], scored=False).add({"kind": "validation", "step": 100, "loss": 0.2}) == (
        100,
        {"validation_loss": 0.2},
    )


@pytest.mark.parametrize(
    ("metrics", "said"),
    [({"dino_i": 0.3}, "no quality was scored at step 7"), ({"quality": math.nan}, "quality is nan at step 7")],
)
def test_a_score_that_is_missing_or_no_number_fails_the_trial(metrics: dict[str, float], said: str) -> None:
    with pytest.raises(RunError, match=said):
        TrialReporter(["quality"], scored=True).add({"kind": "scores", "step": 7, "metrics": metrics})


def test_the_looks_of_a_run_are_read_back_from_its_records(tmp_path: Path) -> None:
    with Recorder(tmp_path / "records") as recorder:
        for step, loss in ((0, 0.3), (50, 0.25), (100, 0.2)):
            recorder.write("validation", {"step": step, "loss": loss, "n": 8})
        for step, model, value in ((0, "base", 0.0), (0, "real", 0.9), (100, "trial-003", 0.6)):
            row = {"step": step, "model": model, "subject": "robot", "metric": "quality", "value": value, "n": 8}
            recorder.write("scores", row | {"split": "tune"})
    assert recorded(tmp_path, TrialReporter(["quality"], scored=True)) == {
        100: {"validation_loss": 0.2, "quality": 0.6}
    }
    assert recorded(tmp_path, TrialReporter(["validation_loss"], scored=False)) == {
        50: {"validation_loss": 0.25},
        100: {"validation_loss": 0.2},
    }


def test_the_first_proposal_is_the_recipe_and_the_interrupted_come_before_new_ones() -> None:
    mine = space()
    recipe = mine.start({})
    fresh = Proposer(mine, recipe, [], str)
    first = fresh.suggest("a")
    assert (first["changes"], first["run"], first["looks"]) == ({}, "0", [])
    assert fresh.trials[0].parameters == {"optim.lr": recipe.optim.lr}
    assert fresh.suggest("b")["changes"].keys() == {"optim.lr"}

    known = [trial(0, "finished", 0.5), trial(1, "cut", 0.4), trial(2, "running"), trial(3, "stopped", 0.1)]
    again = Proposer(mine, recipe, known, str)
    assert [again.suggest(key)["run"] for key in "ab"] == ["s/1", "s/2"]
    assert again.suggest("c")["run"] == "4"
    assert again.trial("a").evaluations == known[1].evaluations
    assert again.trial("b").state == "running"


def test_a_failed_trial_is_told_and_does_not_stop_the_next() -> None:
    mine = space(searcher={"kind": "tpe", "n_startup_trials": 1})
    proposer = Proposer(mine, mine.start({}), [], str)
    for key in "abc":
        proposer.suggest(key)
    for key, state in (("a", "finished"), ("b", "failed"), ("c", "stopped")):
        ours = proposer.trial(key)
        ours.state = state  # type: ignore[assignment]
        if state != "failed":
            ours.evaluations.append(TrialScores(300, {"quality": 0.5}, 1.0))
            ours.kept = 300
        proposer.tell(ours)
    # The default is no proposal of the study: it is added when it has ended.
    assert [one.state.name for one in proposer._study.trials] == ["PRUNED", "PRUNED", "COMPLETE"]
    assert 1e-4 <= proposer.suggest("d")["changes"]["optim.lr"] <= 1e-2


def _asked(scheduler: Halving, key: str, changes: dict[str, Any], step: int, score: float) -> str:
    one: Any = SimpleNamespace(trial_id=key, config={"changes": changes})
    if key not in scheduler._trial_info:
        scheduler.on_trial_add(None, one)
    return scheduler.on_trial_result(None, one, {"step": step, "quality": score})


def test_a_weak_trial_is_stopped_at_a_rung_and_the_default_never() -> None:
    mine = space()
    scheduler = Halving(mine, mine.start({}), [])
    changed = {"optim.lr": 1e-3}
    assert _asked(scheduler, "0", {}, 100, 0.5) == "CONTINUE"
    assert _asked(scheduler, "1", changed, 99, 0.1) == "CONTINUE"  # before the rung
    assert _asked(scheduler, "1", changed, 100, 0.1) == "STOP"
    assert _asked(scheduler, "2", changed, 100, 0.6) == "CONTINUE"
    assert _asked(scheduler, "3", {}, 100, 0.0) == "CONTINUE"


def test_rungs_know_what_earlier_sessions_scored() -> None:
    mine = space()
    past = [trial(0, "finished", 0.5, 0.5, 0.5), trial(1, "cut", 0.9), trial(2, "failed")]
    scheduler = Halving(mine, mine.start({}), past)
    assert _asked(scheduler, "a", {"optim.lr": 1e-3}, 100, 0.4) == "STOP"
    # A trial that was cut will report its own evaluations again.
    assert _asked(scheduler, "b", {"optim.lr": 1e-3}, 100, 0.6) == "CONTINUE"


def test_a_budget_counts_every_session() -> None:
    trials = [trial(0, "finished", 0.5, 0.5, 0.5), trial(1, "stopped", 0.1)]
    assert Clock(trials)() >= 30.0
    for budget, clock_s, spent in (
        ({"steps": 700}, 0.0, ""),
        ({"steps": 699}, 0.0, "budget.steps=699"),  # 400 are taken, and a trial has 300
        ({"seconds": 31}, 30.0, ""),
        ({"seconds": 31}, 31.0, "budget.seconds=31"),
        ({"trials": 2}, 99.0, ""),  # Ray Tune counts trials
    ):
        mine = space(budget=budget)
        stopper = BudgetStopper(mine, mine.start({}), trials, lambda now=clock_s: now)  # type: ignore[misc]
        assert stopper.stop_all() == bool(spent)
        assert stopper.spent == spent


def test_trials_beside_each_other_do_not_spend_each_others_steps() -> None:
    """Two may be open at once; a budget of one trial and a half begins one, and ends with it finished."""
    mine = space(budget={"steps": 450})
    recipe = mine.start({})
    proposer = Proposer(mine, recipe, [], str)
    stopper = BudgetStopper(mine, recipe, proposer.trials, lambda: 0.0)
    assert isinstance(proposer.suggest("a"), dict)
    assert proposer.suggest("b") is None  # 300 are promised
    first = proposer.trial("a")
    first.evaluations.append(TrialScores(300, {"quality": 0.5}, 1.0))
    assert not stopper.stop_all()  # its last evaluation comes before its artifact
    first.state = "stopped"
    first.evaluations[-1] = TrialScores(100, {"quality": 0.5}, 1.0)
    assert isinstance(proposer.suggest("c"), dict)  # what was not taken is free again
    second = proposer.trial("c")
    second.evaluations.append(TrialScores(300, {"quality": 0.5}, 1.0))
    second.state = "finished"
    assert proposer.suggest("d") == Proposer.FINISHED
    assert stopper.stop_all() and stopper.spent == "budget.steps=450"
