"""Which to choose: questions that people weigh LoRA against DreamBooth by, each with a figure measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sdxl_ray.display.units import bytes_text, count_text, seconds_text
from sdxl_ray.report.document import Cell, DataTable, Paragraph, ReportSection, absent, score_text
from sdxl_ray.report.facts import BOTH, DREAMBOOTH, LORA, NO_PRIOR, ArmFacts, ComparisonFacts, main_metric
from sdxl_ray.report.metrics import Absent, metric_of
from sdxl_ray.report.ranking import share_of_the_way

#: A cost that differs by less than this is called even: runs of one recipe differ as much.
NOTICEABLE = 1.1
METHODS = (LORA, DREAMBOOTH, BOTH)


@dataclass(frozen=True)
class Question:
    """One question: a figure for each method, and which of LoRA and DreamBooth it speaks for."""

    question: str
    measure: str
    figures: dict[str, str | Absent]
    better: str | Absent


def section(facts: ComparisonFacts) -> ReportSection:
    chosen = arms(facts)
    title = "Which to choose"
    lead = (
        "The questions that people ask when they weigh LoRA against DreamBooth. Each row has a figure of this "
        "comparison and the method that it speaks for; neither: the interval holds zero, or costs within 10 %."
    )
    if not chosen:
        nothing = Paragraph("Not measured: no arm is LoRA or DreamBooth.", tone="muted")
        return ReportSection("choice", title, lead, (nothing,))
    rows = tuple(
        (
            Cell(choice.question, tone="strong"),
            Cell(choice.measure),
            *(_cell(choice.figures[method]) for method in chosen),
            _cell(choice.better),
        )
        for choice in choices(facts)
    )
    heads = (f"{method} ({arm.name})" if method != arm.name else method for method, arm in chosen.items())
    caption = "One arm of each method, the one most like the subject where there are several."
    table = DataTable(caption, ("question", "measured as", *heads, "speaks for"), rows, prose=True)
    return ReportSection("choice", title, lead, (table,))


def arms(facts: ComparisonFacts) -> dict[str, ArmFacts]:
    """The arm that stands for each method. DreamBooth without the prior loss stands in where there is none with it."""
    found = {method: facts.of_method(method) for method in METHODS}
    found[DREAMBOOTH] = found[DREAMBOOTH] or facts.of_method(NO_PRIOR)
    return {method: arm for method, arm in found.items() if arm is not None}


def choices(facts: ComparisonFacts) -> Iterator[Question]:
    """The rows: cost first, then what is lost, then what is gained."""
    yield _cost(facts, "Efficiency", "trainable parameters", "trainable", count_text)
    yield _cost(facts, "Training time", "all steps", "train_s", seconds_text)
    yield _cost(facts, "Resources: memory", "peak memory of a worker", "peak_bytes", bytes_text)
    yield _cost(facts, "Resources: disk", "artifact size", "artifact_bytes", bytes_text)
    yield _compatibility(facts)
    for name in ("pres", "class_kid", "prior_loss"):
        yield _gain(facts, "Forgetting", name)
    yield _gain(facts, "Personalisation", main_metric(facts))
    yield _complexity(facts)
    yield _power(facts)
    yield _score(facts, "Customisation", "clip_t", "the subject in other places, as prompted")
    yield _score(facts, "Image quality", main_metric(facts), "likeness to real photos of the subject")
    yield _score(facts, "Image quality", "clip_t", "what the prompt says is in the image")
    yield _score(facts, "Variety", "div", "images of one prompt still differ")


def _cost(facts: ComparisonFacts, question: str, measure: str, attribute: str, write: Callable[[Any], str]) -> Question:
    values = {method: getattr(arm.cost, attribute) for method, arm in arms(facts).items()}
    figures = {method: v if isinstance(v, Absent) else write(v) for method, v in values.items()}
    return Question(question, measure, figures, _cheaper(values))


def _cheaper(values: dict[str, Any]) -> str | Absent:
    pair = [values.get(method) for method in (LORA, DREAMBOOTH)]
    if None in pair:
        return Absent("it takes a LoRA arm and a DreamBooth arm")
    for value in pair:
        if isinstance(value, Absent):
            return value
    lora, full = (float(value) for value in pair if value is not None)
    if max(lora, full) <= NOTICEABLE * min(lora, full):
        return "neither"
    return LORA if lora < full else DREAMBOOTH


def _compatibility(facts: ComparisonFacts) -> Question:
    """How an artifact is used is a fact of its kind; what it takes to hand it over are its bytes."""
    words = {"lora": "loads onto the base it was made on", "full": "a whole model, needs no base"}
    sizes = {method: arm.cost.artifact_bytes for method, arm in arms(facts).items()}
    figures: dict[str, str | Absent] = {}
    for method, arm in arms(facts).items():
        size, use = sizes[method], words.get(arm.setting("tuning.kind"), "its kind is not recorded")
        figures[method] = size if isinstance(size, Absent) else f"{bytes_text(size)}, {use}"
    return Question("Compatibility", "what is handed over, and what it loads onto", figures, _cheaper(sizes))


def _gain(facts: ComparisonFacts, question: str, name: str) -> Question:
    metric = metric_of(name)
    gains = {method: facts.gain(arm.name, name) for method, arm in arms(facts).items()}
    figures = {m: g if isinstance(g, Absent) else score_text(g, metric.digits, signed=True) for m, g in gains.items()}
    less = "" if metric.from_base else " less the base's"
    measure = f"{metric.title}{less}, {metric.better} is better"
    return Question(question, measure, figures, _better(facts, name))


def _score(facts: ComparisonFacts, question: str, name: str, measure: str) -> Question:
    metric = metric_of(name)
    scores = {method: facts.score(arm.name, name) for method, arm in arms(facts).items()}
    figures = {m: s if isinstance(s, Absent) else score_text(s, metric.digits) for m, s in scores.items()}
    words = f"{metric.title}: {measure}; {metric.better} is better"
    return Question(question, words, figures, _better(facts, name))


def _better(facts: ComparisonFacts, name: str) -> str | Absent:
    """By intervals: `neither` where the difference of the two does not leave zero out."""
    chosen = arms(facts)
    if LORA not in chosen or DREAMBOOTH not in chosen:
        return Absent("it takes a LoRA arm and a DreamBooth arm")
    lead = facts.lead(chosen[LORA].name, chosen[DREAMBOOTH].name, name)
    if isinstance(lead, Absent):
        return lead
    side = lead.direction(metric_of(name).better)
    return {"better": LORA, "worse": DREAMBOOTH, "even": "neither"}.get(side, Absent("no interval is recorded"))


def _complexity(facts: ComparisonFacts) -> Question:
    figures: dict[str, str | Absent] = {}
    costs: dict[str, Any] = {}
    for method, arm in arms(facts).items():
        count, spent = arm.setting("data.prior.num_class_images"), arm.cost.prepare_s
        images = f"{count} class images" if count else "no class images"
        time = f"not measured ({spent.reason})" if isinstance(spent, Absent) else seconds_text(spent)
        figures[method] = f"{images}; preparation {time}"
        costs[method] = 1 + (count or 0)
    return Question("Complexity", "class images to draw first, and preparation", figures, _cheaper(costs))


def _power(facts: ComparisonFacts) -> Question:
    name = main_metric(facts)
    figures: dict[str, str | Absent] = {}
    for method, arm in arms(facts).items():
        way = share_of_the_way(facts, arm.name, name)
        figures[method] = Absent("it takes scores of the base and of real photos") if way is None else f"{way:.0%}"
    measure = f"share of the way from the base to real photos in {metric_of(name).short}"
    return Question("Power", measure, figures, _better(facts, name))


def _cell(value: str | Absent) -> Cell:
    return absent(value.reason) if isinstance(value, Absent) else Cell(value)
