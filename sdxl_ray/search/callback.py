"""Records what the trials of a search do, while Ray Tune runs them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.tune import Callback

from sdxl_ray.config.search_space import METRICS
from sdxl_ray.io.records import Recorder
from sdxl_ray.io.rows import OnRow
from sdxl_ray.io.search_records import ENDED, Trial, TrialScores, TrialState, write_trial
from sdxl_ray.io.storage import Storage
from sdxl_ray.search.optuna_search import Proposer
from sdxl_ray.search.trial import EVALUATIONS, FAILED, FINISHED, KEPT, STEP


class TrialRecorder(Callback):  # type: ignore[misc]  # Ray is untyped
    """One row for whatever is new, on disk before anything else is decided; `on_row` shows it.

    `keep` is called when a trial has ended: it sends what is on disk to where the search is kept.
    """

    def __init__(
        self,
        proposer: Proposer,
        store: Storage,
        recorder: Recorder,
        clock: Callable[[], float],
        on_row: OnRow,
        keep: Callable[[], None],
    ) -> None:
        self._proposer, self._place, self._recorder = proposer, store, recorder
        self._clock, self._on_row, self._keep = clock, on_row, keep
        self._seen: dict[int, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune keeps a copy of its callbacks for a restore that we never ask for."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A process has it now."""
        ours = self._proposer.trial(trial.trial_id)
        self._seen[ours.number] = self._clock()
        self._write(ours)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An evaluation. One that an earlier session has seen is only repeated for the scheduler."""
        ours = self._proposer.trial(trial.trial_id)
        ours.kept = result.get(KEPT)
        reported = result.get(EVALUATIONS, [(result[STEP], result)] if FAILED not in result else [])
        for step, metrics in reported:
            if step > ours.step:
                evaluation = TrialScores(
                    step, {name: float(metrics[name]) for name in METRICS if name in metrics}, self._clock()
                )
                ours.evaluations.append(evaluation)
                self._write(ours, evaluation)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ended: by itself, or because the scheduler said so."""
        result = trial.last_result
        if FAILED in result:
            self._end(trial, "failed", str(result[FAILED]))
        else:
            self._end(trial, "finished" if result.get(FINISHED) else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process died, or failed in a way that we did not expect, too often."""
        error = trial.get_pickled_error() or trial.get_error()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if isinstance(error, RayActorError) or not lines:
            lines = ["its process died every time: out of memory, killed or crashed (Ray's logs say which)"]
        self._end(trial, "failed", lines[-1])

    def close(self) -> None:
        """The session ended: trials under way stay as they are and resume with the search."""
        for ours in self._proposer.trials:
            if ours.state in ENDED:
                self._forget(ours)  # again: workers that were being stopped may have written one more
            else:
                ours.state = "cut"
                self._write(ours)
        self._keep()

    def _end(self, trial: Any, state: TrialState, error: str = "") -> None:
        ours = self._proposer.trial(trial.trial_id)
        ours.state, ours.error = state, " ".join(error.split())
        self._write(ours)
        self._proposer.tell(ours)
        self._forget(ours)
        self._keep()

    def _forget(self, ours: Trial) -> None:
        """Remove the checkpoints of a trial that has ended: they are not resumed, and full ones are gigabytes."""
        checkpoints = self._place.root / ours.run / "checkpoints"
        shutil.rmtree(checkpoints, ignore_errors=True)
        self._place.remove(checkpoints)

    def _write(self, ours: Trial, evaluation: TrialScores | None = None) -> None:
        now = self._clock()
        ours.seconds += now - self._seen.get(ours.number, now)
        self._seen[ours.number] = ours.ended_s = now
        write_trial(self._recorder, ours, evaluation)
        self._on_row({"kind": "trial", **ours.row(), "metrics": ours.metrics})
