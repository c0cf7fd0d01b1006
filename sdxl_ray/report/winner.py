"""Which arm wins, by a rule that is written on the page: no weights, no score of scores.

Subject fidelity decides among the arms that still do what the prompt says: a model that draws nothing but its five
photos has the highest subject fidelity of all. What it forgot is told beside it and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdxl_ray.report.facts import Arm, Facts, main_metric, value_of
from sdxl_ray.report.metrics import BASE, Absent, Gain, Metric, Score, metric_of

#: Prompt fidelity, and how much of it an arm may lose: under CLIP the loss that people see (arXiv 2208.12242).
GUARD = "clip_t"
_ALLOWED = 0.05
#: Cosines of another encoder have another scale. Right and wrong captions are .6 apart under the embedded base's pair
#: (its card) where CLIP ViT-B/32 has about .12: the same share of it.
_ALLOWED_BY = {"tiny-clip": 0.25}


@dataclass(frozen=True)
class Outcome:
    """winner None: nothing was scored, and `why` says so. second: the best of the others.

    obedient: whether the winner kept its prompt fidelity. separated: whether it is apart from the second.
    dropped: arms that lost too much prompt fidelity to be chosen.
    """

    metric: Metric
    winner: Arm | None
    gain: Gain | Absent
    second: Arm | None
    separated: bool
    obedient: bool
    dropped: tuple[Arm, ...]
    why: str = ""

    @property
    def beats_base(self) -> bool:
        return isinstance(self.gain, Gain) and self.gain.direction(self.metric.better) == "better"


def allowed(facts: Facts) -> float:
    """The prompt fidelity that an arm may lose, on the scale of the encoder that measured it."""
    scores = (facts.score(arm.name, GUARD) for arm in facts.arms)
    encoders = {score.encoder for score in scores if isinstance(score, Score) and score.encoder}
    return min((_ALLOWED_BY.get(name, _ALLOWED) for name in encoders), default=_ALLOWED)


def rule(facts: Facts) -> str:
    """The rule as the page says it."""
    return (
        f"The winner has the highest subject fidelity among the arms that lost at most {allowed(facts)} prompt "
        f"fidelity ({metric_of(GUARD).short}) against the base, a loss that people see."
    )


def decide(facts: Facts) -> Outcome:
    """Apply the rule."""
    metric = metric_of(main_metric(facts))
    scored = [arm for arm in facts.arms if isinstance(facts.score(arm.name, metric.name), Score)]
    if not scored:
        reason = facts.score(facts.arms[0].name, metric.name)
        assert isinstance(reason, Absent)
        return Outcome(metric, None, reason, None, False, False, (), reason.reason)
    dropped = tuple(arm for arm in scored if not _obeys(facts, arm))
    order = sorted(
        scored, key=lambda arm: (arm not in dropped, value_of(facts.score(arm.name, metric.name))), reverse=True
    )
    winner, second = order[0], next(iter(order[1:]), None)
    return Outcome(
        metric,
        winner,
        facts.gain(winner.name, metric.name),
        second,
        second is not None and _apart(facts, winner, second, metric),
        winner not in dropped,
        tuple(arm for arm in dropped if arm is not winner),
    )


def share_of_the_way(facts: Facts, arm: str, metric: str) -> float | None:
    """How much of the distance from the base to real photos an arm went: 0 the base, 1 as like as photos are."""
    here, base, real = (facts.score(model, metric) for model in (arm, BASE, "real"))
    if not (isinstance(here, Score) and isinstance(base, Score) and isinstance(real, Score)):
        return None
    return (here.value - base.value) / (real.value - base.value) if real.value > base.value else None


def _obeys(facts: Facts, arm: Arm) -> bool:
    lost = facts.gain(arm.name, GUARD)
    return isinstance(lost, Absent) or lost.value >= -allowed(facts)


def _apart(facts: Facts, first: Arm, second: Arm, metric: Metric) -> bool:
    lead = facts.lead(first.name, second.name, metric.name)
    return isinstance(lead, Gain) and lead.direction(metric.better) == "better"
