"""Which step is the best, when a run stops, and that a resumed run decides as the first one would have."""

from __future__ import annotations

import json
import math

from sdxl_ray.metrics.quality import Measured
from sdxl_ray.training.early_stopping import Best


def scores(quality: float, **changes: float) -> dict[str, Measured]:
    values = {"quality": quality, "dino_i": 0.5, "clip_t": 0.3, **changes}
    return {name: (value, value - 0.01, value + 0.01) for name, value in values.items()}


def reported(qualities: list[float], patience: int) -> tuple[Best, list[bool]]:
    best = Best()
    return best, [best.scored(10 * (k + 1), scores(q), patience) for k, q in enumerate(qualities) if not best.stopped]


def test_the_best_is_the_highest_and_the_first_of_equals() -> None:
    best, better = reported([0.1, 0.5, 0.5, 0.3, 0.6, 0.6009, 0.2], 0)
    assert better == [True, True, False, False, True, False, False]
    assert (best.step, best.quality, best.stale, best.stopped) == (50, 0.6, 2, False)


def test_it_stops_after_so_many_looks_in_a_row_without_a_better_one() -> None:
    best, better = reported([0.1, 0.5, 0.4, 0.6, 0.5, 0.6, 0.9], 2)
    assert len(better) == 6 and best.stopped and best.step == 40


def test_a_slow_start_is_no_end() -> None:
    best, better = reported([0.0, 0.0, 0.0, 0.1, 0.0], 2)
    assert better == [True, True, True, True, False]
    assert not best.stopped and best.step == 40


def test_a_validation_loss_chooses_only_where_it_may() -> None:
    best = Best()
    best.validated(0.5, 10)
    best.validated(0.4, None)
    assert (best.last, best.loss, best.step) == (0.4, 0.5, 10)


def test_it_comes_back_from_plain_json_and_goes_on_alike() -> None:
    assert Best.of(json.loads(json.dumps(Best().meta()))) == Best()
    assert math.inf not in Best().meta().values()
    best, _ = reported([0.3, 0.2], 3)
    best.validated(0.25, None)
    best.scored(30, scores(0.1 / 3, dino_i=0.7, clip_t=0.1), 3)
    assert best.overfitting is not None and best.overfitting.step == 30
    again = Best.of(json.loads(json.dumps(best.meta())))
    assert again == best
    assert again.scored(40, scores(0.0), 3) is best.scored(40, scores(0.0), 3) is False
    assert again == best and again.stopped
