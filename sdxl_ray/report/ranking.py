"""Which arm wins, by a rule that is written on the page: the quality that chose checkpoints and trials too.

Quality (`sdxl_ray.metrics.quality`) is subject fidelity, less what was given up for it: a model that draws nothing but
its five photos has the highest subject fidelity of all. Where it cannot be had (no ceiling, no CLIP), fidelity decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdxl_ray.metrics.quality import NEEDED, References, has_quality, learnt, quality, visible_loss
from sdxl_ray.report.facts import ArmFacts, ComparisonFacts, main_metric, value_of
from sdxl_ray.report.metrics import BASE, Absent, Gain, Metric, Score, difference, metric_of

#: Prompt fidelity: its loss is shown beside the winner where people can see it.
GUARD = "clip_t"


@dataclass(frozen=True)
class Outcome:
    """winner None: nothing was scored, and `why` says so. second: the best of the others.

    quality: of every scored arm, where it decided; empty where subject fidelity alone did. obedient: whether the winner
    lost no prompt fidelity that people see, as far as that is known. separated: whether it is apart from the second by
    what decided. dropped: arms with more subject fidelity than the winner, which gave up more for it.
    """

    metric: Metric
    winner: ArmFacts | None
    gain: Gain | Absent
    second: ArmFacts | None
    separated: bool
    obedient: bool
    dropped: tuple[ArmFacts, ...]
    why: str = ""
    quality: Mapping[str, Score] = field(default_factory=dict)

    @property
    def beats_base(self) -> bool:
        return isinstance(self.gain, Gain) and self.gain.direction(self.metric.better) == "better"


def allowed(facts: ComparisonFacts) -> float | None:
    """The loss of prompt fidelity that people see, on the scale of the encoder that measured it; None: not known."""
    clip = _clip(facts)
    return visible_loss(clip) if has_quality(clip) else None


def unlike(facts: ComparisonFacts) -> float:
    """How much less real photos of the subject fit the plain words for their class than what the base draws: >= 0."""
    base, real = facts.score(BASE, GUARD), facts.score("real", GUARD)
    return max(base.value - real.value, 0.0) if isinstance(base, Score) and isinstance(real, Score) else 0.0


def rule(facts: ComparisonFacts) -> str:
    """The rule as the page says it."""
    if main_metric(facts) not in facts.metrics:
        return "Only likeness to held-out photos of the subject may decide, and it was not scored."
    if quality_of(facts):
        return (
            "The winner has the highest quality: the share of the way to real photos, times the shares of prompt "
            "fidelity and of what the base could do that were kept."
        )
    clip = _clip(facts)
    why = f": no scale of CLIP-T is known for {clip!r}, clip-vit-b32 has one" if clip and not has_quality(clip) else ""
    return f"The winner has the highest subject fidelity; what it gave up for it cannot be weighed here{why}."


def decide(facts: ComparisonFacts) -> Outcome:
    """Apply the rule."""
    metric = metric_of(main_metric(facts))
    scored = [arm for arm in facts.arms if isinstance(facts.score(arm.name, metric.name), Score)]
    if not scored:
        reason = facts.score(facts.arms[0].name, metric.name)
        assert isinstance(reason, Absent)
        return Outcome(metric, None, reason, None, False, False, (), reason.reason)
    worth = quality_of(facts)

    def fidelity(arm: ArmFacts) -> float:
        return value_of(facts.score(arm.name, metric.name))

    order = sorted(scored, key=lambda arm: (worth[arm.name].value if worth else 0.0, fidelity(arm)), reverse=True)
    winner, second = order[0], next(iter(order[1:]), None)
    return Outcome(
        metric,
        winner,
        facts.gain(winner.name, metric.name),
        second,
        second is not None and lead(facts, worth, winner, second).direction("higher") == "better",
        _obeys(facts, winner),
        tuple(arm for arm in order[1:] if fidelity(arm) > fidelity(winner)),
        quality=worth,
    )


def quality_of(facts: ComparisonFacts) -> dict[str, Score]:
    """The quality of every scored arm; empty unless all of them have one."""
    base, real = _values(facts, BASE), facts.score("real", "dino_i")
    if not isinstance(real, Score) or any(name not in base for name in NEEDED) or not has_quality(_clip(facts)):
        return {}
    references = References({name: score.value for name, score in base.items()}, real.value, _clip(facts))
    found = {}
    for arm in facts.arms:
        own = _values(facts, arm.name)
        if own and any(name not in own for name in NEEDED):
            return {}
        if own:
            measured = {name: (score.value, score.low, score.high) for name, score in own.items()}
            found[arm.name] = Score(*quality(measured, references))
    return found


def lead(facts: ComparisonFacts, by: Mapping[str, Score], first: ArmFacts, second: ArmFacts) -> Gain:
    """How far the first is ahead of the second by what decides: qualities as if they were independent."""
    if by:
        return difference(by[first.name], by[second.name])
    ahead = facts.lead(first.name, second.name, main_metric(facts))
    assert isinstance(ahead, Gain)  # both were scored
    return ahead


def share_of_the_way(facts: ComparisonFacts, arm: str, metric: str) -> float | None:
    """How much of the distance from the base to real photos an arm went: 0 the base, 1 as like as photos are."""
    here, base, real = (facts.score(model, metric) for model in (arm, BASE, "real"))
    if not (isinstance(here, Score) and isinstance(base, Score) and isinstance(real, Score)):
        return None
    return learnt(here.value, base.value, real.value) if real.value > base.value else None


def _values(facts: ComparisonFacts, model: str) -> dict[str, Score]:
    found = {name: facts.score(model, name) for name in facts.metrics}
    return {name: score for name, score in found.items() if isinstance(score, Score)}


def _clip(facts: ComparisonFacts) -> str:
    """The encoder of prompt fidelity."""
    scores = (facts.score(arm.name, GUARD) for arm in facts.arms)
    return next((score.encoder for score in scores if isinstance(score, Score) and score.encoder), "")


def _obeys(facts: ComparisonFacts, arm: ArmFacts) -> bool:
    """Whether no more was lost than people overlook, beyond what real photos of the subject lack themselves.

    Also True where that cannot be said: the encoder's scale is not known.
    """
    gain, seen = facts.gain(arm.name, GUARD), allowed(facts)
    return isinstance(gain, Absent) or seen is None or -gain.value <= unlike(facts) + seen
