"""Records -> report: `report.html`, `report.md` and `report.json` in its folder, in seconds, without torch.

    written = write_report("runs/demo-comparison")
    written.html

A search's folder has a report of its own. `compare` and `tune` call this as their last step; `sdxl-ray report` calls it
again whenever records have changed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdxl_ray.errors import RunError
from sdxl_ray.io import search_records
from sdxl_ray.io.atomic import write_text
from sdxl_ray.report import page
from sdxl_ray.report.document import Document, Panel, Tile
from sdxl_ray.report.facts import ArmFacts, ComparisonFacts, gather
from sdxl_ray.report.markdown import markdown
from sdxl_ray.report.metrics import REFERENCES, Absent
from sdxl_ray.report.ranking import decide
from sdxl_ray.report.search_facts import Searched, open_search
from sdxl_ray.report.sections import SECTIONS, models
from sdxl_ray.report.sections import search as sections_of_a_search
from sdxl_ray.report.source import open_comparison

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Written:
    """Paths of the three files, and what `report.json` says."""

    html: Path
    markdown: Path
    json: Path
    plain: dict[str, Any]


def write_report(folder: str | Path) -> Written:
    """Write the report of a comparison's or a search's folder.

    Raises UserError, one line, for a folder that is neither or is damaged; RunError when it cannot be written.
    """
    (document, plain), home = compose(folder), Path(folder).absolute()
    try:
        html = page.write(document, home / "report.html")
        md = write_text(home / "report.md", markdown(document))
        data = write_text(home / "report.json", json.dumps(plain, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(f"the report cannot be written in {str(home)!r}: {error.strerror or error}") from error
    return Written(html, md, data, plain)


def compose(folder: str | Path) -> tuple[Document, dict[str, Any]]:
    """The report of a comparison's or a search's folder, from its records and those of its runs; and as JSON has it."""
    if (Path(folder) / search_records.CARD).is_file():
        searched = open_search(Path(folder))
        document = sections_of_a_search.document_of(searched)
        return document, search_as_json(searched, document)
    facts = gather(open_comparison(folder))
    document = document_of(facts)
    return document, as_json(facts, document)


def document_of(facts: ComparisonFacts) -> Document:
    """Every section of the report."""
    return Document(facts.card.name, facts.card.experiment, tuple(section(facts) for section in SECTIONS))


def as_json(facts: ComparisonFacts, document: Document) -> dict[str, Any]:
    """The facts behind the page, and its tables as they are written; plots and images are left to the records."""
    outcome = decide(facts)
    return {
        "format": FORMAT_VERSION,
        "name": facts.card.name,
        "experiment": facts.card.experiment,
        "answer": {
            "winner": outcome.winner.name if outcome.winner is not None else None,
            "metric": outcome.metric.name,
            "gain": _plain(outcome.gain),
            "beats_base": outcome.beats_base,
            "separated_from_second": outcome.separated,
            "second": outcome.second.name if outcome.second is not None else None,
        },
        "scores": {
            model: {metric: _plain(facts.score(model, metric)) for metric in facts.shown}
            for model in [*models.names(facts), *REFERENCES]
        },
        "gains": {arm.name: {m: _plain(facts.gain(arm.name, m)) for m in facts.metrics} for arm in facts.arms},
        "arms": {arm.name: _arm(arm) for arm in facts.arms},
        "comparison": facts.card.model_dump(mode="json"),
        "warnings": list(facts.warnings),
        "sections": [_plain(section) for section in document.sections],
    }


def search_as_json(searched: Searched, document: Document) -> dict[str, Any]:
    """The card and the trials of a search, and the tables of its page."""
    return {
        "format": FORMAT_VERSION,
        "name": searched.card.name,
        "search": searched.card.model_dump(mode="json"),
        "trials": [_plain(trial) for trial in searched.trials],
        "importance": searched.importance(),
        "sections": [_plain(section) for section in document.sections],
    }


def _arm(arm: ArmFacts) -> dict[str, Any]:
    return {
        "method": arm.method,
        "photos": _plain(arm.photos),
        "cost": _plain(arm.cost),
        "artifacts": list(arm.hashes),
        "runs": list(arm.runs),
        "curves": _plain(arm.curves),
    }


def _plain(value: Any) -> Any:
    """Dataclasses as mappings; what JSON cannot say (NaN) and what only the page can show (markup) become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _fields(value) if dataclasses.is_dataclass(value) else value


def _fields(value: Any) -> dict[str, Any]:
    match value:
        case Absent():
            return {"absent": value.reason}
        case Panel():
            return {"kind": "panel", "title": value.title, "alt": value.alt, "numbers": _plain(value.numbers)}
        case Tile():
            return {"alt": value.alt, "path": value.relative or None}
    kind = {"kind": value.kind} if hasattr(value, "kind") else {}
    return kind | {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
