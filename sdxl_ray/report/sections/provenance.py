"""How it was made: recipes, seeds, versions, hashes and hardware, so that anyone can repeat it."""

from __future__ import annotations

from typing import Any

from sdxl_ray.report.document import BulletList, Cell, DataTable, Paragraph, ReportBlock, ReportSection, cell
from sdxl_ray.report.facts import ComparisonFacts
from sdxl_ray.report.metrics import Absent
from sdxl_ray.report.source import CARD

_UNREPORTED = Absent(f"{CARD} does not say")


def section(facts: ComparisonFacts) -> ReportSection:
    card = facts.card
    drawing = card.settings
    items = [
        ("base", _words(card.base) or "not recorded"),
        ("encoders (SHA-256 of their files)", _words(card.encoders) if card.encoders else "not recorded"),
        ("seeds", ", ".join(map(str, drawing.seeds)) or "not recorded"),
        ("denoising steps", str(drawing.steps) if drawing.steps is not None else "not recorded"),
        ("guidance", f"{drawing.guidance:g}" if drawing.guidance is not None else "not recorded"),
        ("prompts", "; ".join(drawing.prompts) or "not recorded"),
        ("date", card.environment.date or "not recorded"),
        ("hardware", _words(card.environment.hardware) or "not recorded"),
        ("versions", ", ".join(f"{k} {v}" for k, v in card.environment.versions.items()) or "not recorded"),
    ]
    blocks: list[ReportBlock] = [Paragraph(warning, tone="bad") for warning in facts.warnings]
    blocks.append(BulletList("The same for every model", tuple(items)))
    blocks.append(_arms(facts))
    if any(arm.recipe for arm in facts.arms):
        blocks.append(_recipes(facts))
    blocks.append(
        Paragraph(
            "Every number on this page is read from the records beside it; sdxl-ray report makes the page again from "
            "them, and report.json holds the same facts."
        )
    )
    return ReportSection("made", "How it was made", "Enough to do it again.", tuple(blocks))


def _arms(facts: ComparisonFacts) -> DataTable:
    rows = tuple(
        (
            Cell(arm.name, tone="strong"),
            Cell(", ".join(arm.runs)),
            cell(arm.photos),
            Cell(", ".join(arm.hashes)) if arm.hashes else cell(_UNREPORTED),
        )
        for arm in facts.arms
    )
    return DataTable("Runs and artifacts.", ("arm", "run", "photos", "artifact (SHA-256 of its manifest)"), rows, True)


def _recipes(facts: ComparisonFacts) -> DataTable:
    """Every setting; those in which the arms differ come first."""
    flat = {arm.name: dict(_flat(arm.recipe)) for arm in facts.arms}
    paths = list(dict.fromkeys(path for settings in flat.values() for path in settings))
    differing = [path for path in paths if len({settings.get(path, "") for settings in flat.values()}) > 1]
    same = [path for path in paths if path not in differing]
    rows = [(Cell(path), *(Cell(settings.get(path, "")) for settings in flat.values())) for path in differing]
    shared = next(iter(flat.values()))
    rows += [(Cell(path), Cell(shared[path]), *(Cell("same", tone="muted") for _ in facts.arms[1:])) for path in same]
    return DataTable("Recipes, complete; what differs first.", ("setting", *flat), tuple(rows), folded=True)


def _flat(plain: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(plain, dict) and plain:
        return [pair for key, value in plain.items() for pair in _flat(value, f"{path}.{key}" if path else str(key))]
    return [(path, _words(plain))]


def _words(value: Any) -> str:
    match value:
        case None:
            return "none"
        case dict():
            return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
        case list() | tuple():
            return ", ".join(_words(item) for item in value) or "none"
        case float():
            return f"{value:g}"
        case _:
            return str(value)
