"""The card as Markdown, made from the scores: no figure in it is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdxl_ray.tiny._build.card import sentences
from sdxl_ray.tiny._build.catalog import CLASSES, COLORS, FURTHER_SETS, PATTERNS, SETS, SUBJECTS
from sdxl_ray.tiny._build.places import PLACES
from sdxl_ray.tiny._build.scenes import held_out_pairs
from sdxl_ray.tiny._build.subjects import HELD_OUT, TRAINING
from sdxl_ray.tiny._build.subjects import card as subject_card
from sdxl_ray.tiny.vocabulary import IDENTIFIERS

CardScores = dict[str, Any]

_KINDS = {
    "seen": "class and place that training showed together",
    "unseen": "class and place that training never showed together",
    "colored": "recoloured",
}
_CONTROL = {
    "class_accuracy": "class",
    "place_accuracy": "place",
    "color_accuracy": "colour",
    "caption_right": "right caption",
    "caption_shuffled": "shuffled caption",
}
_ARMS = {
    "base": "base",
    "lora": "LoRA",
    "dreambooth": "DreamBooth, 60 class images",
    "dreambooth_no_prior": "DreamBooth without",
}
_REFERENCES = {
    "real": "real, held out",
    "autoencoder": "these through the autoencoder",
    "another": "others of the class, as drawn",
}
_FIGURES = {
    "subject_fidelity": "fidelity",
    "prompt_score": "prompt score",
    "place_accuracy": "place",
    "class_accuracy": "class",
    "leak": "leak",
    "other_classes_accuracy": "other classes",
}


def card(scores: CardScores) -> str:
    """The whole page; parts that were not measured are left out."""
    parts = [
        sentences.HEAD.format(**_facts(scores)),
        _knowledge(),
        _control(scores),
        _identity(scores),
        _tuning(scores),
    ]
    return "\n".join([*parts, _speed(scores["speed"]), _made(scores), _sources(), sentences.LIMITS])


def _facts(scores: CardScores) -> CardScores:
    return {"revision": scores["revision"][:16], "date": scores["date"]}


def _knowledge() -> str:
    pairs: dict[str, list[str]] = {}
    for name, place in sorted(held_out_pairs()):
        pairs.setdefault(name, []).append(place)
    return "\n".join(
        [
            "## What it knows",
            f"- Classes: {', '.join(CLASSES)}.",
            f"- Places: {', '.join(place.phrases[0] for place in PLACES.values())}.",
            f"- Colours and patterns: {', '.join((*COLORS, *PATTERNS))}.",
            f"- Identifiers that mean nothing in particular: {', '.join(IDENTIFIERS)}.",
            "- Held out, class by class (never in one training scene): "
            + "; ".join(f"{name}: {', '.join(places)}" for name, places in pairs.items())
            + ".",
            f"- Held-out subjects ({TRAINING} images to train on, {HELD_OUT} to score with): "
            + "; ".join(f"`{name}`: {subject_card(name)['description'].lower()}" for name in SUBJECTS)
            + ".",
            "",
        ]
    )


def _control(scores: CardScores) -> str:
    rows = [
        [words, "real scenes" if source == "real" else "drawn by the base", scores[kind][source]["n"]]
        + [_number(scores[kind][source].get(key)) for key in _CONTROL]
        for kind, words in _KINDS.items()
        for source in ("real", "base")
    ]
    return sentences.CONTROL + _table(["prompts", "images", "n", *_CONTROL.values()], rows)


def _identity(scores: CardScores) -> str:
    mean = scores["identity"]["mean"]
    rows = [[name.replace("_", " "), *(_number(row[key]) for key in mean)] for name, row in _subjects(scores)]
    names = [key.replace("_", " ") for key in mean]
    table = _table(["subject", *names], [*rows, ["mean", *(_number(value) for value in mean.values())]])
    return sentences.IDENTITY.format(**scores["identity"]) + table


def _subjects(scores: CardScores) -> Iterable[tuple[str, CardScores]]:
    rows: dict[str, CardScores] = scores["identity"]["subjects"]
    return rows.items()


def _tuning(scores: CardScores) -> str:
    tuned = {key.removeprefix("subject_"): value for key, value in scores.items() if key.startswith("subject_")}
    if not tuned:
        return ""
    results = list(tuned.values())
    mean = {"reference": _means(result["reference"] for result in results), "models": {}}
    for arm in results[0]["models"]:
        mean["models"][arm] = _means(result["models"][arm] for result in results)
    rows = [row for subject, result in {**tuned, "mean": mean}.items() for row in _subject_rows(subject, result)]
    return sentences.TUNING + _table(["subject", "images", *_FIGURES.values()], rows)


def _subject_rows(subject: str, result: CardScores) -> Iterable[list[Any]]:
    for key, words in _REFERENCES.items():
        yield [subject, words, _number(result["reference"][key]), *[""] * (len(_FIGURES) - 1)]
    for arm, model in result["models"].items():
        yield [subject, _ARMS[arm], *(_number(model[key]) for key in _FIGURES)]


def _means(rows: Iterable[CardScores]) -> CardScores:
    kept = list(rows)
    return {key: sum(row[key] for row in kept) / len(kept) for key in kept[0]}


def _speed(rates: CardScores) -> str:
    return sentences.SPEED.format(**rates) + (sentences.TRAINING.format(**rates) if "lora" in rates else "")


def _made(scores: CardScores) -> str:
    stages = scores["made"]["stages"]
    rows = [
        [name, f"{stage['minutes']:.1f}", stage["samples"], stage.get("started_from", "")[:16]]
        for name, stage in stages.items()
    ]
    columns = ["stage", "minutes", "images seen", "went on from the weights of index"]
    return sentences.MADE.format(**scores["made"]) + _table(columns, rows)


def _sources() -> str:
    rows = [[entry.package, entry.version, entry.author, entry.licence] for entry in (SETS | FURTHER_SETS).values()]
    return sentences.SOURCES + _table(["package", "version", "author", "licence"], rows)


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
