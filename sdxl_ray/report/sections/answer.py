"""The first screen: which arm wins, by how much, with what certainty, at what cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sdxl_ray.display.units import bytes_text, count_text, seconds_text
from sdxl_ray.report.document import AnswerBlock, ReportSection, Stat, Tile, joined, score_text
from sdxl_ray.report.facts import ArmFacts, ComparisonFacts
from sdxl_ray.report.metrics import BASE, METRICS, QUALITY, Absent, Gain, Score, metric_of
from sdxl_ray.report.ranking import GUARD, Outcome, allowed, decide, lead, rule, share_of_the_way, unlike
from sdxl_ray.report.scores import FINAL
from sdxl_ray.report.sections import images

#: Rows of images beside the answer.
ROWS = 2
_NO_PHOTO = Tile("no real photo is recorded", None, label="no photo")


def section(facts: ComparisonFacts) -> ReportSection:
    outcome = decide(facts)
    small = f"In brackets: 95% intervals, {_kind(facts, outcome)}. {rule(facts)}"
    sentences = (*_certainty(facts, outcome), *_kept(facts, outcome), *_cost(outcome, facts), small)
    answer = AnswerBlock(headline(facts, outcome), sentences, _stats(facts, outcome), _tiles(facts, outcome))
    return ReportSection("answer", "The answer", "", (answer,))


def headline(facts: ComparisonFacts, outcome: Outcome) -> str:
    """One sentence."""
    if outcome.winner is None:
        return f"Not decided: {outcome.why}."
    name, metric = outcome.winner.name, outcome.metric
    if isinstance(outcome.gain, Absent):
        return f"{name} has the highest {metric.title}; how far it is above the base is not measured."
    if not outcome.beats_base:
        word = outcome.gain.direction(metric.better)
        known = {"even": "not separated from the base", "worse": "below the base"}.get(word, "without an interval")
        return f"No arm is shown to beat the base: {name}, the best of them, is {known}."
    if len(facts.arms) == 1:
        return f"{name} beats the base."
    return f"{name} wins." if outcome.separated else f"{name} leads; {_second(outcome)} is within its uncertainty."


def _kind(facts: ComparisonFacts, outcome: Outcome) -> str:
    """How the differences that the sentences tell came to their intervals."""
    reported = [outcome.gain]
    if outcome.winner is not None and outcome.second is not None:
        reported.append(lead(facts, outcome.quality, outcome.winner, outcome.second))
    paired = [gain.paired for gain in reported if isinstance(gain, Gain)]
    over = f", over {len(facts.subjects)} subjects" if len(facts.subjects) > 1 else ""
    if paired and all(paired):
        return f"paired by prompt and seed{over}"
    return f"{'the first paired, then ' if any(paired) else ''}as if independent{over}"


def _second(outcome: Outcome) -> str:
    return outcome.second.name if outcome.second is not None else "no other arm"


def _certainty(facts: ComparisonFacts, outcome: Outcome) -> list[str]:
    if outcome.winner is None:
        return []
    metric, name, sentences = outcome.metric, outcome.winner.name, []
    if isinstance(outcome.gain, Gain):
        way = share_of_the_way(facts, name, metric.name)
        of_it = f": {way:.0%} of the way from the base to real photos" if way is not None else ""
        gain = score_text(outcome.gain, metric.digits, signed=True)
        sentences.append(f"{metric.title.partition(' (')[0]} {gain} against the base{of_it}.")
    if outcome.second is not None:
        by = QUALITY if outcome.quality else metric
        ahead = score_text(lead(facts, outcome.quality, outcome.winner, outcome.second), by.digits, signed=True)
        apart = "which leaves zero out" if outcome.separated else "which does not leave zero out"
        sentences.append(f"Next is {outcome.second.name}: in {by.words}, {name} is {ahead} ahead of it, {apart}.")
    return sentences


def _kept(facts: ComparisonFacts, outcome: Outcome) -> list[str]:
    if outcome.winner is None:
        return []
    sentences = []
    if outcome.dropped:
        names = joined([arm.name for arm in outcome.dropped])
        sentences.append(f"More like the subject, but not chosen, for what was given up for it: {names}.")
    seen = allowed(facts)
    if not outcome.obedient and seen is not None:
        sentences.append(
            f"The winner lost more than {seen:.2g} prompt fidelity beyond what real photos of the subject "
            "lack, a loss that people see."
        )
    worse, even = [], []
    for name in METRICS:
        if name == outcome.metric.name or isinstance(gain := facts.gain(outcome.winner.name, name), Absent):
            continue
        metric = metric_of(name)
        side = gain.direction(metric.better)
        if side == "worse":
            worse.append(f"{metric.words} {gain.value:+.{metric.digits}f}")
        elif side == "even":
            even.append(metric.words)
    if worse:
        sentences.append(f"What the model lost for it: {joined(worse)}.")
    prompt = metric_of(GUARD)
    if (lacking := unlike(facts)) and any(words.startswith(prompt.words) for words in worse):
        less = f"{lacking:.{prompt.digits}f}"
        sentences.append(f"Real photos of the subject fit the words for its class by {less} less than the base's do.")
    if even:
        sentences.append(f"No loss is shown in {joined(even)}.")
    return sentences


def _cost(outcome: Outcome, facts: ComparisonFacts) -> list[str]:
    if outcome.winner is None:
        return []
    cost, parts = outcome.winner.cost, []
    if not isinstance(cost.train_s, Absent):
        parts.append(f"{seconds_text(cost.train_s)} of training")
    if not isinstance(cost.peak_bytes, Absent):
        parts.append(f"{bytes_text(cost.peak_bytes)} at the peak of a worker")
    if not isinstance(cost.artifact_bytes, Absent):
        parts.append(f"a file of {bytes_text(cost.artifact_bytes)}")
    cheaper = _cheaper(outcome, facts)
    return [f"It took {joined(parts)}{cheaper}."] if parts else []


def _cheaper(outcome: Outcome, facts: ComparisonFacts) -> str:
    """What the second would have taken, when it is as good and took less."""
    assert outcome.winner is not None
    if outcome.second is None or outcome.separated:
        return ""
    mine, other = outcome.winner.cost, outcome.second.cost
    if isinstance(mine.train_s, Absent) or isinstance(other.train_s, Absent) or other.train_s >= mine.train_s:
        return ""
    return f"; {outcome.second.name} took {seconds_text(other.train_s)}"


def _stats(facts: ComparisonFacts, outcome: Outcome) -> tuple[Stat, ...]:
    if outcome.winner is None:
        return ()
    name, stats = outcome.winner.name, []
    for metric in (outcome.metric, metric_of(GUARD)):
        here, base = facts.score(name, metric.name), facts.score(BASE, metric.name)
        if isinstance(here, Score):
            from_ = f"base {base.value:.{metric.digits}f}" if isinstance(base, Score) else "base not measured"
            stats.append(Stat(metric.title, f"{here.value:.{metric.digits}f}", from_))
    return (*stats, *_cost_stats(outcome.winner, facts))


def _cost_stats(winner: ArmFacts, facts: ComparisonFacts) -> list[Stat]:
    stats = []
    asked: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("train_s", "Training", seconds_text),
        ("peak_bytes", "Peak memory", bytes_text),
        ("trainable", "Trained parameters", count_text),
        ("artifact_bytes", "Artifact", bytes_text),
    )
    for attribute, label, write in asked:
        value = getattr(winner.cost, attribute)
        if isinstance(value, Absent):
            stats.append(Stat(label, "not measured", value.reason))
            continue
        others = [
            f"{arm.name} {write(other)}"
            for arm in facts.arms
            if arm is not winner and not isinstance(other := getattr(arm.cost, attribute), Absent)
        ]
        stats.append(Stat(label, write(value), ", ".join(others[:3])))
    return stats


def _tiles(facts: ComparisonFacts, outcome: Outcome) -> tuple[Tile, ...]:
    """Rows of a real photo, then the base and the winner at the same prompt and seed."""
    if outcome.winner is None:
        return ()
    drawn = [p for p in facts.images if p.purpose == "subject" and p.split == FINAL]
    at = {(p.model, p.subject, p.prompt, p.seed): p for p in drawn}
    order = {prompt: place for place, prompt in enumerate(facts.card.settings.prompts)}
    mine = [p for p in drawn if p.model == outcome.winner.name and (BASE, p.subject, p.prompt, p.seed) in at]
    mine.sort(key=lambda p: (order.get(p.prompt, len(order)), p.seed))
    firsts = list({(p.subject, p.prompt): p for p in reversed(mine)}.values())[::-1][:ROWS]
    tiles: list[Tile] = []
    for place, image in enumerate(firsts):
        photos = images.photos(facts, image.subject)
        tiles.append(replace(photos[place % len(photos)], label="real photo") if photos else _NO_PHOTO)
        for model in (BASE, image.model):
            shown = at[model, image.subject, image.prompt, image.seed]
            made = images.tile(shown, model, shown.prompt, shown.seed)
            tiles.append(replace(made, label=f"{model}: {shown.prompt}" if made.path is not None else made.label))
    return tuple(tiles)
