"""Which parameters of a search mattered."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdxl_ray.config.optuna_parameters import contains, distribution, empty_study, encoded
from sdxl_ray.config.search_space import MetricMode, Space
from sdxl_ray.io.search_records import Trial

#: Fewer finished or stopped trials say nothing about importance.
LEAST_TRIALS = 6
#: What counts as a good trial for importance: this share of them.
BEST_SHARE = 0.3


def importance(space: Space, trials: Sequence[Trial], metric: str, mode: MetricMode) -> dict[str, float] | None:
    """Path -> share of what decides whether a trial is among the best, by PED-ANOVA (arXiv 2304.10255).

    Of the last scores of finished and stopped trials, stopped ones included because they are most of a search. None for
    too few of them; a parameter that not every such trial has is left out.
    """
    import optuna

    known = [t for t in trials if t.state in ("finished", "stopped") and math.isfinite(_score(t, metric))]
    study = empty_study(["maximize" if mode == "max" else "minimize"])
    for trial in known:
        found = {path: distribution(space.parameters[path]) for path in trial.parameters if path in space.parameters}
        values = {path: encoded(space.parameters[path], trial.parameters[path]) for path in found}
        if all(contains(found[path], value) for path, value in values.items()):
            study.add_trial(optuna.trial.create_trial(value=trial.metrics[metric], params=values, distributions=found))
    if len(study.trials) < LEAST_TRIALS:
        return None
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {str(path): float(share) for path, share in shares.items()}


def _score(trial: Trial, metric: str) -> float:
    """NaN for a trial without it; 0 is a score like any other."""
    score = trial.score(metric)
    return math.nan if score is None else score
