"""A search's report: what it found, whether that holds on the final split, and how it got there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from sdxl_ray.display.trials import parameters_text
from sdxl_ray.display.units import count_text, seconds_text
from sdxl_ray.io.search_records import Trial, progress, steps_taken
from sdxl_ray.report.document import (
    AnswerBlock,
    Cell,
    DataTable,
    Document,
    Gallery,
    Panel,
    Panels,
    Paragraph,
    ReportBlock,
    ReportSection,
    Stat,
    Tile,
    TileRows,
    score_cell,
    score_text,
)
from sdxl_ray.report.metrics import BASE, REFERENCES, Score, metric_of
from sdxl_ray.report.plots import Axis, PlotLine, Strand, intervals, lines, parallel, scatter, style
from sdxl_ray.report.scores import FINAL
from sdxl_ray.report.search_facts import DEFAULT, TUNED, Searched, ends, final_scores, height
from sdxl_ray.report.sections.models import numbers

#: Of the final split's images: rows that are shown.
_ROWS = 6
_STYLES = {
    "finished": style(0),
    "stopped": style(1),
    "failed": style(2),
    "default": style(4),
    "best": style(5),
}


def document_of(searched: Searched) -> Document:
    """The whole report of a search."""
    sections = (answer, final, trials, parameters, trade_offs, made)
    space = searched.card.space
    return Document(f"Search {searched.card.name}", space.description, tuple(part(searched) for part in sections))


def answer(searched: Searched) -> ReportSection:
    verdict, winner = searched.card.verdict, searched.winner
    sentence = verdict.sentence if verdict else "The search has not ended: what follows is what there is so far."
    states = {state: sum(t.state == state for t in searched.trials) for state in ("finished", "stopped", "failed")}
    reported = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    spent = max((trial.ended_s for trial in searched.trials), default=0.0)
    stats = [
        Stat("Trials", str(len(searched.trials)), reported),
        Stat("Training steps", count_text(steps_taken(searched.trials)), f"in {seconds_text(spent)} of searching"),
    ]
    if winner is not None:
        default = next((t for t in searched.finished if t.number == 0), None)
        against = f"default {default.metrics[searched.card.metric]:.4f}" if default else "no default finished"
        score = f"{winner.metrics[searched.card.metric]:.4f}"
        stats.insert(0, Stat(f"Best {metric_of(searched.card.metric).short} (tune split)", score, against))
    reported_best = f"Best recipe: {searched.label(winner)}, {parameters_text(winner.parameters)}." if winner else ""
    why = (
        "The best of many trials looks better than it is on the images that chose it; the final split has prompts, "
        "seeds and, where there were enough, photos that no trial saw."
    )
    block = AnswerBlock(sentence, tuple(filter(None, (reported_best, why))), tuple(stats), _pairs(searched, 1))
    return ReportSection("answer", "The answer", "", (block,))


def final(searched: Searched) -> ReportSection:
    """Winner against default, on what no trial saw."""
    verdict, scores = searched.card.verdict, final_scores(searched)
    blocks: list[ReportBlock] = []
    names = [name for name in (BASE, DEFAULT, TUNED, *REFERENCES) if any(m == name for m, _, _ in scores.by)]
    if names:
        rows = tuple(
            (
                Cell(REFERENCES.get(name, name), tone="strong"),
                *(score_cell(scores.final(name, m)) for m in scores.metrics),
            )
            for name in names
        )
        titles = ("model", *(metric_of(name).short for name in scores.metrics))
        blocks.append(DataTable("Scores on the final split, with 95 % intervals.", titles, rows))
    if verdict and verdict.differences:
        cells = []
        for row in verdict.differences:
            score = Score(row["value"], row["low"], row["high"], row["n"])
            better = metric_of(row["metric"]).better
            cells.append((Cell(row["metric"]), Cell(better), Cell(score_text(score, signed=True), number=True)))
        caption = "Winner minus default, paired: the same prompts, seeds and photos."
        blocks.append(DataTable(caption, ("metric", "better", "difference"), tuple(cells)))
    tiles = _gallery(searched)
    if tiles is not None:
        blocks.append(tiles)
    if not blocks:
        blocks.append(Paragraph("Winner and default were not judged on a final split.", tone="muted"))
    return ReportSection("final", "On the final split", "The only figures here that chose nothing.", tuple(blocks))


def trials(searched: Searched) -> ReportSection:
    """Best so far against time and steps, and every trial."""
    metric = searched.card.metric
    points = progress(searched.trials, metric, searched.card.mode)
    blocks: list[ReportBlock] = []
    if points:
        ended = max(trial.ended_s for trial in searched.trials)
        whole = [*points, (ended, steps_taken(searched.trials), points[-1][2])]
        rows = [(f"{at_s:.0f}", str(steps), value) for at_s, steps, value in points]
        table = numbers(("seconds", "training steps", metric), rows, "{:.4f}".format)
        panels = []
        for title, place in (("seconds of searching", 0), ("training steps of all trials", 1)):
            plot = lines([PlotLine("best so far", style(0), _stairs(whole, place))], title, metric)
            alt = f"Best {metric} so far against {title}: from {points[0][2]:.4f} to {points[-1][2]:.4f}"
            panels.append(Panel(f"Against {title}", plot, alt, table))
        blocks.append(Panels("The best finished trial so far, on the tune split.", tuple(panels)))
    shown = list(dict.fromkeys((metric, *searched.card.space.metric)))
    winner = searched.winner
    body = tuple(
        (
            Cell(searched.label(trial), tone="strong" if trial is winner else ""),
            Cell(trial.state, note=trial.error),
            Cell(f"{trial.step}/{trial.steps}", number=True),
            *(Cell("" if (v := trial.score(name)) is None else f"{v:.4f}", number=True) for name in shown),
            Cell(seconds_text(trial.seconds), number=True),
            Cell(parameters_text(trial.parameters)),
        )
        for trial in searched.trials
    )
    caption = "Every trial. Stopped: behind at a rung of the scheduler; its score is that of its last evaluation."
    blocks.append(DataTable(caption, ("trial", "state", "step", *shown, "time", "parameters"), body))
    return ReportSection("trials", "Trials", "How the search went.", tuple(blocks))


def parameters(searched: Searched) -> ReportSection:
    """Parallel coordinates and importance."""
    known = [trial for trial in searched.trials if trial.score(searched.card.metric) is not None]
    if not known:
        return ReportSection("parameters", "Parameters", "", (Paragraph("No trial has a score yet.", tone="muted"),))
    blocks: list[ReportBlock] = [
        Panels("Each trial as a line through its parameters to its score.", (_parallel(searched, known),))
    ]
    shares = searched.importance()
    if shares:
        rows = [(path, Score(share), style(0)) for path, share in sorted(shares.items(), key=lambda x: -x[1])]
        plot = intervals([(path.rpartition(".")[2], score, how) for path, score, how in rows], {}, "share")
        table = numbers(("parameter", "share"), [(path, score.value) for path, score, _ in rows], "{:.2f}".format)
        alt = "Importance: " + ", ".join(f"{path} {score.value:.2f}" for path, score, _ in rows)
        caption = (
            "What separates the best third of the trials from the rest (PED-ANOVA, arXiv 2304.10255, through Optuna), "
            "over finished and stopped trials. With few trials it is a hint."
        )
        blocks.append(Panels(caption, (Panel("Importance", plot, alt, table),)))
    else:
        blocks.append(Paragraph("Importance is not given: too few trials that ended.", tone="muted"))
    return ReportSection("parameters", "Parameters", "Which settings mattered.", tuple(blocks))


def trade_offs(searched: Searched) -> ReportSection:
    """The Pareto front, an image for every two of its metrics, with samples of its trials."""
    known = [t for t in searched.finished if all(t.score(name) is not None for name in searched.modes)]
    if not known:
        text = "There is no trade-off to show: no finished trial has scored images."
        return ReportSection("front", "Trade-offs", "", (Paragraph(text, tone="muted"),))
    names = ", ".join(metric_of(name).short for name in searched.modes)
    caption = f"{len(searched.front)} of {len(known)} finished trials are on the Pareto front of {names}."
    panels = tuple(_front(searched, known, x, y) for x, y in combinations(searched.modes, 2))
    blocks: list[ReportBlock] = [Panels(caption, panels)]
    images = _samples(searched, searched.front)
    if images is not None:
        blocks.append(images)
    return ReportSection("front", "Trade-offs", "What is better in one score is often worse in another.", tuple(blocks))


def made(searched: Searched) -> ReportSection:
    """How it was made."""
    space, environment = searched.card.space, searched.card.environment
    where = space.budget.model_dump(exclude_none=True)
    facts = (
        ("recipe", space.recipe),
        ("metric", ", ".join(f"{name} ({mode})" for name, mode in space.modes.items())),
        ("scheduler", str(space.scheduler.model_dump(exclude_none=True))),
        ("searcher", str(space.searcher.model_dump())),
        ("budget", ", ".join(f"{key} {value}" for key, value in where.items())),
        ("hardware", str(environment.get("hardware", ""))),
        ("date", str(environment.get("date", ""))),
        ("versions", ", ".join(f"{key} {value}" for key, value in environment.get("versions", {}).items())),
    )
    rows = tuple((Cell(name), Cell(value)) for name, value in facts)
    return ReportSection(
        "made", "How it was made", "", (DataTable("The search.", ("what", "value"), rows, prose=True),)
    )


def _parallel(searched: Searched, known: Sequence[Trial]) -> Panel:
    space, metric = searched.card.space, searched.card.metric
    values = [trial.metrics[metric] for trial in known]
    low, high = min(values), max(values)
    uprights = [Axis(path.rpartition(".")[2], ends(parameter)) for path, parameter in space.parameters.items()]
    uprights.append(Axis(metric, ((-0.05, f"{low:.3f}"), (1.05, f"{high:.3f}"))))
    winner, strands = searched.winner, []
    for trial in known:
        name = "best" if trial is winner else "default" if trial.number == 0 else trial.state
        heights = [
            height(parameter, trial.parameters[path]) if path in trial.parameters else None
            for path, parameter in space.parameters.items()
        ]
        heights.append((trial.metrics[metric] - low) / (high - low) if high > low else 0.5)
        strong = name in ("best", "default")
        strands.append(Strand(name, _STYLES.get(name, style(3)), tuple(heights), strong))
    rows = [(searched.label(trial), trial.metrics[metric], parameters_text(trial.parameters)) for trial in known]
    table = numbers(("trial", metric, "parameters"), rows, "{:.4f}".format)
    alt = f"{len(known)} trials as lines over {', '.join(space.parameters)}, ending at their {metric}"
    return Panel("Parallel coordinates", parallel(uprights, strands), alt, table)


def _front(searched: Searched, known: Sequence[Trial], x: str, y: str) -> Panel:
    on, dots, rows = searched.front, [], []
    for trial in known:
        at, name, here = (trial.metrics[x], trial.metrics[y]), searched.label(trial), trial in on
        dots.append(("on the front" if here else "behind", style(0) if here else style(1), *at, str(trial.number)))
        rows.append((name, *at, "yes" if here else ""))
    table = numbers(("trial", x, y, "on the front"), rows, "{:.4f}".format)
    plot = scatter(dots, f"{metric_of(x).short}, {metric_of(x).better} is better", metric_of(y).short)
    return Panel(f"{metric_of(y).short} against {metric_of(x).short}", plot, f"{y} against {x} of each trial", table)


def _stairs(points: Sequence[tuple[float, int, float]], place: int) -> tuple[tuple[float, float], ...]:
    """The best so far stays until a better one comes."""
    corners: list[tuple[float, float]] = []
    for point in points:
        if corners:
            corners.append((float(point[place]), corners[-1][1]))
        corners.append((float(point[place]), point[2]))
    return tuple(corners)


def _pairs(searched: Searched, rows: int) -> tuple[Tile, ...]:
    """Rows of a real photo, the default's and the winner's image of the same prompt and seed."""
    gallery = _gallery(searched)
    if gallery is None or not gallery.photos:
        return ()
    tiles: list[Tile] = []
    for place, group in enumerate(gallery.groups[:rows]):
        tiles += [gallery.photos[place % len(gallery.photos)], *group.rows[0][1][1:]]
    return tuple(tiles)


def _gallery(searched: Searched) -> Gallery | None:
    """Base, default and winner at the prompts and seeds of the final split."""
    drawn = [row for row in searched.images if row["split"] == FINAL]
    at = {(row["model"], row["prompt"], row["seed"]): row for row in drawn if row["purpose"] == "subject"}
    columns = [name for name in (BASE, DEFAULT, TUNED) if any(model == name for model, _, _ in at)]
    if not columns:
        return None
    groups = []
    for prompt in list(dict.fromkeys(prompt for _, prompt, _ in at))[:_ROWS]:
        seed = min(seed for _, text, seed in at if text == prompt)
        tiles = tuple(_tile(searched, at.get((name, prompt, seed), {}).get("path"), name, prompt) for name in columns)
        groups.append(TileRows(prompt, ((f"seed {seed}", tiles),)))
    photos = tuple(
        _tile(searched, row["path"], "real photo", str(row["seed"])) for row in drawn if row["purpose"] == "real"
    )
    caption = "The same prompts and seeds; the photos are those of the final split."
    return Gallery(caption, tuple(columns), tuple(groups), photos)


def _samples(searched: Searched, on: Sequence[Trial]) -> Gallery | None:
    """The sample images of the trials on the front, at the step of their artifact where there are some."""
    storage = searched.folder.parent
    found: dict[str, list[str]] = {}
    for trial in on:
        folder = storage / trial.run / "samples" / f"step-{trial.step if trial.kept is None else trial.kept:07d}"
        images = [path.relative_to(searched.folder).as_posix() for path in sorted(folder.glob("*.png"))]
        if images:
            found[searched.label(trial)] = images
    if not found:
        return None
    count = min(len(images) for images in found.values())
    rows = tuple(
        (
            f"sample {place}",
            tuple(_tile(searched, images[place], name, f"sample {place}") for name, images in found.items()),
        )
        for place in range(count)
    )
    return Gallery(
        "Samples of the trials on the front.", tuple(found), (TileRows("the runs' sample prompts", rows),), ()
    )


def _tile(searched: Searched, relative: str | None, model: str, prompt: str) -> Tile:
    path = searched.folder / relative if relative else None
    if path is None or not path.is_file():
        return Tile(f"{model}: {prompt}: no image", None, label="no image")
    return Tile(f"{model}: {prompt}", path, str(relative), label=f"{model}: {prompt}")
