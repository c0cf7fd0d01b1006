"""Preemption is asked for by time: long steps are each followed by a question, short ones are not slowed by it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sdxl_ray.io.collectives import SingleProcess
from sdxl_ray.training.preemption import EVERY_S, MOST_STEPS, PreemptionCheck
from tests.running import Threads, on_ranks


def asked_at(seconds_per_step: float, steps: int) -> list[int]:
    """Steps after which the question was put, on a clock of our own."""
    now, asked = [0.0], list[int]()
    check = PreemptionCheck(SingleProcess(), lambda: False, 0, lambda: now[0])
    for done in range(1, steps + 1):
        now[0] += seconds_per_step
        check._preempted = lambda done=done: bool(asked.append(done))
        check(done)
    return asked


def test_long_steps_are_each_followed_by_a_question() -> None:
    assert asked_at(10.0, 5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.0])
def test_short_steps_are_asked_for_at_most_every_two_seconds(seconds: float) -> None:
    asked = asked_at(seconds, 200)
    gaps = [(later - earlier) * seconds for earlier, later in pairwise(asked[1:])]
    assert gaps
    assert max(gaps) <= EVERY_S
    assert len(asked) <= max(200 * seconds / (EVERY_S - seconds), 200 / MOST_STEPS) + 2


def test_steps_that_become_long_are_noticed_within_ten() -> None:
    now, asked = [0.0], list[int]()
    check = PreemptionCheck(SingleProcess(), lambda: False, 0, lambda: now[0])
    for done in range(1, 60):
        now[0] += 0.01 if done < 30 else 10.0
        check._preempted = lambda done=done: bool(asked.append(done))
        check(done)
    assert min(step for step in asked if step >= 30) <= 30 + MOST_STEPS
    assert asked[-10:] == list(range(50, 60))


def test_ranks_of_different_pace_ask_after_the_same_steps() -> None:
    def work(rank: Threads) -> list[int]:
        now, asked = [0.0], list[int]()
        check = PreemptionCheck(rank, lambda: False, 0, lambda: now[0])
        for done in range(1, 41):
            now[0] += 0.1 + 0.4 * rank.rank
            before = check._next
            check(done)
            if before <= done:
                asked.append(done)
        return asked

    one, two = on_ranks(2, work)
    assert one == two
    assert len(one) > 5
