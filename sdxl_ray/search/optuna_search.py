"""Ray Tune's side of a search: who proposes, who stops a trial, who ends the search. All three know earlier sessions.

A search that was killed is not restored from Ray's memory of it: its trials are read from our records, Optuna's study
and the scheduler's rungs are filled from them, and what was interrupted is proposed first, by its own number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from ray.tune import Stopper
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.search_space import Space
from sdxl_ray.io.search_records import ENDED, Trial, steps_committed
from sdxl_ray.search import proposals
from sdxl_ray.search.trial import STEP


class Proposer(Searcher):  # type: ignore[misc]  # Ray is untyped
    """Gives Ray Tune the configuration of each trial and keeps `trials`, in the order they were begun.

    A trial is begun while the budget's steps hold all of it beside what the open ones may still take: so none is cut.
    """

    def __init__(self, space: Space, recipe: Recipe, trials: list[Trial], run: Callable[[int], str]) -> None:
        metric = space.metric[0]
        super().__init__(metric=metric, mode=space.modes[metric])
        self._space, self._recipe, self.trials, self._run = space, recipe, trials, run
        self._study = proposals.study_of(space, [trial for trial in trials if trial.state in ENDED])
        self._again = [trial for trial in trials if trial.state not in ENDED]
        self._asked: dict[int, optuna.Trial] = {}
        self._of: dict[str, Trial] = {}

    def trial(self, trial_id: str) -> Trial:
        """Ours, by Ray Tune's id."""
        return self._of[trial_id]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial: one that was interrupted, else the recipe as it is, else what Optuna proposes.

        None while there may be steps for another one, once an open trial has been stopped; FINISHED when there are not.
        """
        if not self._again and full(self._space, self._recipe, self.trials):
            return None if any_open(self.trials) else self.FINISHED
        trial = self._again.pop(0) if self._again else self._new()
        trial.state = "running"
        self._of[trial_id] = trial
        return {
            "changes": trial.parameters if trial.number else {},
            "run": trial.run,
            "looks": [(evaluation.step, evaluation.metrics) for evaluation in trial.evaluations],
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ours are reported by `TrialRecorder`, once they are on disk."""

    def tell(self, trial: Trial) -> None:
        """Give the study a trial that has ended."""
        asked = self._asked.pop(trial.number, None)
        if asked is None:
            proposals.add(self._study, self._space, trial)
            return
        for step, value in proposals.intermediate(self._space, trial).items():
            asked.report(value, step)
        state, scores = proposals.outcome(self._space, trial)
        self._study.tell(asked, scores, state)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See `on_trial_result`."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records are its memory. Ray Tune wants a file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""

    def _new(self) -> Trial:
        number = len(self.trials)
        if number == 0:
            parameters = self._space.defaults(self._recipe)
        else:
            asked = self._study.ask()
            self._asked[number] = asked
            parameters = proposals.propose(self._space, self._recipe, asked)
        trial = Trial(
            number, parameters, int(parameters.get("optim.steps", self._recipe.optim.steps)), self._run(number)
        )
        self.trials.append(trial)
        return trial


class Halving(ASHAScheduler):  # type: ignore[misc]
    """ASHA whose rungs hold what earlier sessions scored.

    The first trial is measured at every rung and never stopped: at the end the winner is held against it.
    """

    def __init__(self, space: Space, recipe: Recipe, trials: Sequence[Trial]) -> None:
        metric = space.metric[0]
        grace = space.scheduler.grace_period or recipe.evaluation.every
        super().__init__(
            time_attr=STEP,
            metric=metric,
            mode=space.modes[metric],
            max_t=max(space.last_step(recipe), grace + 1),
            grace_period=grace,
            reduction_factor=space.scheduler.reduction_factor,
        )
        for trial in trials:
            if trial.state in ENDED and trial.evaluations:
                past: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")
                self.on_trial_add(None, past)
                for evaluation in trial.evaluations:
                    super().on_trial_result(None, past, {STEP: evaluation.step, **evaluation.metrics})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return decision if trial.config["changes"] else self.CONTINUE


class BudgetStopper(Stopper):  # type: ignore[misc]  # Ray is untyped
    """Ends the search when its seconds are spent, or its steps hold no other trial; trials are counted by Ray Tune."""

    def __init__(self, space: Space, recipe: Recipe, trials: list[Trial], clock: Callable[[], float]) -> None:
        self._space, self._recipe, self._trials, self._clock = space, recipe, trials, clock
        self.spent = ""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial ends by it."""
        return False

    def stop_all(self) -> bool:
        """Whether it is spent."""
        budget = self._space.budget
        if budget.seconds is not None and self._clock() >= budget.seconds:
            self.spent = f"budget.seconds={budget.seconds:g}"
        elif full(self._space, self._recipe, self._trials) and not any_open(self._trials):
            self.spent = f"budget.steps={budget.steps}"
        return bool(self.spent)


def full(space: Space, recipe: Recipe, trials: Sequence[Trial]) -> bool:
    """Whether the budget's steps hold no other whole trial, beside what the open ones may still take."""
    steps = space.budget.steps
    return steps is not None and steps_committed(trials) + space.last_step(recipe) > steps


def any_open(trials: Sequence[Trial]) -> bool:
    """Whether a trial runs, or was interrupted and will resume."""
    return any(trial.state not in ENDED for trial in trials)


class Clock:
    """Seconds of searching, sessions before this one included."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        ends = [trial.ended_s for trial in trials] + [
            evaluation.at_s for trial in trials for evaluation in trial.evaluations
        ]
        self._before, self._begun = max(ends, default=0.0), time.monotonic()

    def __call__(self) -> float:
        return self._before + time.monotonic() - self._begun
