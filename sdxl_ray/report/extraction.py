"""The report of an extraction: what each rank keeps, what it costs, and quality against rank and file size.

document, drawings = compose(ExtractionFacts("dog", rows, lost, scores, differences))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdxl_ray.display.table import Column, Table
from sdxl_ray.display.units import bytes_text, count_text
from sdxl_ray.errors import RunError
from sdxl_ray.io.atomic import write_bytes, write_text
from sdxl_ray.io.rows import Row
from sdxl_ray.metrics.quality import NEEDED, Measured, References, has_quality, quality
from sdxl_ray.report import page
from sdxl_ray.report.document import (
    BulletList,
    Cell,
    DataTable,
    Document,
    Panel,
    Panels,
    Paragraph,
    ReportBlock,
    ReportSection,
    score_cell,
    score_text,
)
from sdxl_ray.report.drawing import Drawing
from sdxl_ray.report.markdown import markdown
from sdxl_ray.report.metrics import BASE, METRICS, QUALITY, REFERENCES, Metric, Score, metric_of
from sdxl_ray.report.plots import Dot, dots, style
from sdxl_ray.report.sections.models import numbers

#: The name of the model that was taken apart, in scores.
FULL = "full"
#: Of what the full model added to the base's subject fidelity, the share that counts as kept.
KEPT = 0.95
_ALL = "all"
_PLOTTED = ("quality", "dino_i", "clip_t")
_LOST = {
    "biases": "which no LoRA holds",
    "norms": "which no LoRA holds",
    "others": "which no LoRA holds",
    "embeddings": "in diffusers' file alone: kohya's format has no name for them",
    "rounded": "the base's, rounded to the model's dtype",
    "unchanged": "the base's own",
}


@dataclass(frozen=True)
class ExtractionFacts:
    """Rows of the tables `extractions`, `not_extracted`, `scores` and `differences`; model: what was taken apart."""

    model: str
    rows: Sequence[Row]
    lost: Sequence[Row]
    scores: Sequence[Row] = ()
    differences: Sequence[Row] = ()
    _by: dict[tuple[str, str], Score] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for row in self.scores:
            if row["value"] is not None and not row["metric"].endswith("_gain"):
                self._by[row["model"], row["metric"]] = Score(row["value"], row["low"], row["high"], row["n"])
        self._by.update(self._qualities())

    @property
    def whole(self) -> list[Row]:
        """The rows of all parts together, in the order asked for."""
        return [row for row in self.rows if row["part"] == _ALL]

    @property
    def models(self) -> list[str]:
        """Base, full model and LoRAs, as far as they are scored."""
        return [name for name in (BASE, FULL, *(row["name"] for row in self.whole)) if (name, "clip_t") in self._by]

    def score(self, model: str, metric: str) -> Score | None:
        """A score with its interval; quality is composed of the others."""
        return self._by.get((model, metric))

    def share(self, model: str) -> float | None:
        """Of what the full model added to the base's subject fidelity, what a LoRA keeps; None where it added none."""
        base, full, own = (self.score(name, "dino_i") for name in (BASE, FULL, model))
        if base is None or full is None or own is None or full.value <= base.value:
            return None
        return (own.value - base.value) / (full.value - base.value)

    @property
    def least(self) -> Row | None:
        """The smallest LoRA that keeps `KEPT` of what the full model added."""
        enough = [row for row in self.whole if (share := self.share(row["name"])) is not None and share >= KEPT]
        return min(enough, key=lambda row: int(row["parameters"]), default=None)

    def _qualities(self) -> dict[tuple[str, str], Score]:
        clip = next((row["encoder"] for row in self.scores if row["metric"] == "clip_t" and row["encoder"]), "")
        base = {metric: score.value for (model, metric), score in self._by.items() if model == BASE}
        ceiling = self.score("real", "dino_i")
        if ceiling is None or not has_quality(clip) or not all(name in base for name in NEEDED):
            return {}
        found = {}
        for model in {model for model, _ in self._by} - {*REFERENCES}:
            own: dict[str, Measured] = {m: (s.value, s.low, s.high) for (o, m), s in self._by.items() if o == model}
            if all(name in own for name in NEEDED):
                found[model, QUALITY.name] = Score(*quality(own, References(base, ceiling.value, clip)))
        return found


def sizes_text(facts: ExtractionFacts) -> str:
    """The table of ranks, sizes and residuals, and what no LoRA has, as lines."""
    parts = [part for part in dict.fromkeys(row["part"] for row in facts.rows) if part != _ALL]
    residuals = {(row["name"], row["part"]): row["residual"] for row in facts.rows}
    made = [
        row | {"ranks": ranks_text(row)} | {part: residuals.get((row["name"], part)) for part in parts}
        for row in facts.whole
    ]
    columns = [
        Column("name", "LoRA"),
        Column("ranks", "ranks", align="right"),
        Column("layers", "layers"),
        Column("parameters", "parameters", count_text),
        Column("diffusers_bytes", "diffusers' file", bytes_text),
        Column("kohya_bytes", "kohya's file", bytes_text),
        Column("predicted", "predicted residual", "{:.4f}".format),
        Column("residual", "residual", "{:.4f}".format),
        *(Column(part, part, "{:.4f}".format) for part in parts),
    ]
    return "\n".join([Table(columns, made).text(), "", *(f"{kind}: {said}" for kind, said in _lost(facts))])


def verdict(facts: ExtractionFacts) -> str:
    """One sentence on the least rank that keeps what the full model learnt."""
    shares = {row["name"]: share for row in facts.whole if (share := facts.share(row["name"])) is not None}
    if not shares:
        return ""
    what = "of what the full model added to the base's subject fidelity"
    if facts.least is not None:
        name = facts.least["name"]
        return f"{name} is the smallest that keeps {KEPT:.0%} {what} ({shares[name]:.1%})"
    best = max(shares, key=lambda name: shares[name])
    return f"none keeps {KEPT:.0%} {what}: the best, {best}, keeps {shares[best]:.1%}"


def write(facts: ExtractionFacts, out: Path) -> tuple[Path, list[Path]]:
    """Write `report.html` and `report.md`, and each plot as PNG in `plots/`. Raises RunError when it cannot."""
    document = compose(facts)
    try:
        html = page.write(document, out / "report.html")
        write_text(out / "report.md", markdown(document))
        plots = []
        for name, drawing in _drawings(facts).items():
            (out / "plots").mkdir(exist_ok=True)
            plots.append(write_bytes(out / "plots" / f"{name}.png", drawing.png()))
    except OSError as error:
        raise RunError(f"the report cannot be written in {str(out)!r}: {error.strerror or error}") from error
    return html, plots


def compose(facts: ExtractionFacts) -> Document:
    """The report."""
    blocks: list[ReportBlock] = [_sizes(facts), BulletList("Not in the LoRAs", tuple(_lost(facts)))]
    if (said := verdict(facts)) != "":
        blocks.insert(0, Paragraph(f"{said[0].upper()}{said[1:]}."))
    sections = [ReportSection("sizes", "What each rank keeps", "", tuple(blocks))]
    if facts.models:
        panels = tuple(panel for metric, axis in _plots(facts) if (panel := _panel(facts, metric, axis)) is not None)
        scored: list[ReportBlock] = [_scores(facts)]
        if panels:
            scored.insert(0, Panels("Scores against rank and file size, with 95 % intervals.", panels))
        if (lead := _against_full(facts)) is not None:
            scored.append(lead)
        sections.append(ReportSection("scores", "What each rank draws", "", tuple(scored)))
    else:
        said = "The LoRAs are not scored: give --score, or photos with --subject."
        sections.append(ReportSection("scores", "What each rank draws", "", (Paragraph(said, tone="muted"),)))
    return Document(
        f"Extraction of {facts.model}", "LoRAs of the difference between a full model and its base", tuple(sections)
    )


def ranks_text(row: Row) -> str:
    """`16`, or `3 - 96` where layers differ."""
    low, high = row["lowest_rank"], row["highest_rank"]
    return str(low) if low == high else f"{low} - {high}"


def _lost(facts: ExtractionFacts) -> Iterator[tuple[str, str]]:
    for row in facts.lost:
        what = _LOST.get(row["kind"], "not in the LoRAs")
        share = f", {row['share']:.2%} of the squared difference" if row["squared"] else ""
        yield row["kind"], f"{count_text(row['tensors'])} tensors ({what}){share}"


def _sizes(facts: ExtractionFacts) -> DataTable:
    parts = [part for part in dict.fromkeys(row["part"] for row in facts.rows) if part != _ALL]
    residuals = {(row["name"], row["part"]): row["residual"] for row in facts.rows}
    rows = tuple(
        (
            Cell(row["name"], tone="strong"),
            Cell(ranks_text(row), number=True),
            Cell(count_text(row["parameters"]), number=True),
            *(Cell("-" if size is None else bytes_text(size), number=True) for size in _file_sizes(row)),
            *(Cell(f"{residuals[row['name'], part]:.4f}", number=True) for part in (_ALL, *parts)),
        )
        for row in facts.whole
    )
    titles = ("LoRA", "ranks", "parameters", "diffusers' file", "kohya's file", "residual", *parts)
    caption = "Residual: norm of what a LoRA lacks, as a share of the norm of the layers' difference from the base."
    return DataTable(caption, titles, rows)


def _file_sizes(row: Row) -> tuple[int | None, int | None]:
    return row["diffusers_bytes"], row["kohya_bytes"]


def _size(row: Row) -> int:
    """Of diffusers' file, or of kohya's where that is the only one."""
    return next(size for size in _file_sizes(row) if size is not None)


def _scores(facts: ExtractionFacts) -> DataTable:
    metrics = [name for name in (QUALITY.name, *METRICS) if any(facts.score(model, name) for model in facts.models)]
    rows = []
    for model in [*facts.models, *(name for name in REFERENCES if facts.score(name, "dino_i"))]:
        share = facts.share(model) if model not in (BASE, *REFERENCES) else None
        cells = [score_cell(score) if (score := facts.score(model, name)) else Cell("") for name in metrics]
        kept = Cell("" if share is None else f"{share:.0%}", number=True)
        rows.append((Cell(REFERENCES.get(model, model), tone="strong"), *cells, kept))
    titles = ("model", *(metric_of(name).short for name in metrics), "of full's gain")
    return DataTable(
        "Scores with 95 % intervals; of what the full model added to the base's DINO-I.", titles, tuple(rows)
    )


def _against_full(facts: ExtractionFacts) -> DataTable | None:
    found = {(row["model"], row["metric"]): row for row in facts.differences if row["against"] == FULL}
    metrics = [name for name in METRICS if any(metric == name for _, metric in found)]
    rows = tuple(
        (
            Cell(row["name"], tone="strong"),
            *(
                Cell(score_text(Score(of["value"], of["low"], of["high"]), signed=True), number=True)
                if (of := found.get((row["name"], name)))
                else Cell("")
                for name in metrics
            ),
        )
        for row in facts.whole
    )
    titles = ("LoRA", *(metric_of(name).short for name in metrics))
    return (
        DataTable("Each LoRA minus the full model: same prompts, seeds and photos.", titles, rows) if metrics else None
    )


def _plots(facts: ExtractionFacts) -> Iterator[tuple[Metric, str]]:
    for name in _PLOTTED:
        if facts.score(FULL, name) or facts.score(BASE, name):
            for axis in ("rank", "size"):
                yield metric_of(name), axis


def _points(facts: ExtractionFacts, metric: Metric, axis: str) -> list[tuple[Row, float, Score]]:
    """(row, x, score) of each scored LoRA; a LoRA of many ranks stands at their largest only in the table."""
    found = []
    for row in facts.whole:
        score = facts.score(row["name"], metric.name)
        if score is not None and (axis == "size" or row["energy"] is None):
            found.append((row, float(row["highest_rank"] if axis == "rank" else _size(row)), score))
    return found


def _drawing(facts: ExtractionFacts, metric: Metric, axis: str) -> Drawing | None:
    names = ("one rank", "a share of the energy")
    points = [
        Dot(names[by_energy], style(by_energy), x, score)
        for row, x, score in _points(facts, metric, axis)
        for by_energy in (int(row["energy"] is not None),)
    ]
    if not points:
        return None
    marks = {name: score.value for name in (BASE, FULL) if (score := facts.score(name, metric.name)) is not None}
    title = f"{metric.short}, {metric.better} is better"
    if axis == "rank":
        return dots(points, "rank (the largest of a layer)", title, "{:.0f}".format, marks, base=2)
    return dots(points, "size of the file", title, lambda size: f"{size / 1e6:g} MB", marks)


def _drawings(facts: ExtractionFacts) -> Mapping[str, Drawing]:
    made = {f"{metric.name}-by-{axis}": _drawing(facts, metric, axis) for metric, axis in _plots(facts)}
    return {name: drawing for name, drawing in made.items() if drawing is not None}


def _panel(facts: ExtractionFacts, metric: Metric, axis: str) -> Panel | None:
    drawing, points = _drawing(facts, metric, axis), _points(facts, metric, axis)
    if drawing is None:
        return None
    said = "; ".join(f"{row['name']} {score_text(score)}" for row, _, score in points)
    rows = [
        (row["name"], str(int(x)) if axis == "rank" else bytes_text(x), score.value, score.low, score.high)
        for row, x, score in points
    ]
    table = numbers(("LoRA", axis, "value", "low", "high"), rows, "{:.3f}".format)
    return Panel(f"{metric.title} against {'rank' if axis == 'rank' else 'file size'}", drawing, said, table)
