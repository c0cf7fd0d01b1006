"""The end of a search: the best recipe as a file, and winner and default side by side on what no trial saw."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sdxl_ray.config import yaml_loader
from sdxl_ray.config.recipe import Recipe, override, parse
from sdxl_ray.config.search_space import METRICS
from sdxl_ray.distributed.generation import draw_on_workers
from sdxl_ray.errors import RunError
from sdxl_ray.evaluation.defaults import settings_of
from sdxl_ray.evaluation.evaluated_models import BASE, EvaluatedModel
from sdxl_ray.evaluation.quality_gain import quality_gain
from sdxl_ray.evaluation.runner import evaluate
from sdxl_ray.evaluation.subject import Subject, subject_name
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.atomic import write_text
from sdxl_ray.io.records import Recorder
from sdxl_ray.io.rows import OnRow
from sdxl_ray.io.search_records import BEST, FinalVerdict, SearchCard, Trial, best, front
from sdxl_ray.io.storage import Storage
from sdxl_ray.report.search_facts import DEFAULT, TUNED
from sdxl_ray.search.splits import final_photos, final_prompts, judged
from sdxl_ray.training.run_directory import APART


def evaluate_finalists(card: SearchCard, store: Storage, trials: list[Trial], gpus: int, on_row: OnRow) -> FinalVerdict:
    """Write `best.yaml` (and one file for each other trial of a Pareto front) and judge the winner; the verdict.

    The cluster must be connected: its workers draw, with `gpus` each, unless trials need none and no worker.
    Raises RunError when no trial finished.
    """
    space, recipe, home = card.space, parse(card.recipe), store.root / card.name
    metric = card.metric
    winner = best(trials, metric, card.mode)
    if winner is None:
        errors = [trial.error for trial in trials if trial.error]
        why = f": {errors[0]}" if errors else ", the budget ended before"
        raise RunError(f"no trial of {len(trials)} finished{why}")
    _write_recipe(home / BEST, card, recipe, winner, metric)
    if len(space.metric) > 1:
        for trial in front(trials, space.modes):
            _write_recipe(home / f"front-{trial.number:03d}.yaml", card, recipe, trial, metric)
    default = next((trial for trial in trials if trial.number == 0 and trial.state == "finished"), None)
    if winner.number == 0:
        return FinalVerdict(
            winner=0, beats_default=False, sentence=f"Nothing beat the default: it has the best {metric}."
        )
    if default is None:
        why = trials[0].error or "it did not finish"
        return FinalVerdict(winner=winner.number, beats_default=False, sentence=f"No default to compare with: {why}.")
    if not judged(space, recipe):
        return FinalVerdict(winner=winner.number, beats_default=False, sentence=_not_evaluated(metric, winner, default))
    return _evaluate_finalists(card, store, recipe, winner, default, gpus, on_row)


def _not_evaluated(metric: str, winner: Trial, default: Trial) -> str:
    gap = winner.metrics[metric] - default.metrics[metric]
    return (
        f"Trial {winner.number} is {gap:+.4f} from the default in {metric} on what it was chosen by; "
        "without scored images there is no final split to prove it on."
    )


def _evaluate_finalists(
    card: SearchCard, store: Storage, recipe: Recipe, winner: Trial, default: Trial, gpus: int, on_row: OnRow
) -> FinalVerdict:
    final, home = card.space.final, store.root / card.name
    artifacts = {}
    for name, trial in ((DEFAULT, default), (TUNED, winner)):
        folder = store.root / trial.run
        if not folder.is_dir():  # it was trained where the search was begun
            store.get_folder(folder, APART)
        artifacts[name] = Artifact.open(folder / "artifact")
    class_name, words = str(recipe.data.known_class), recipe.data.subject
    held_out = final_photos(card.space, recipe)
    subject = Subject(subject_name(str(recipe.data.images)), class_name, held_out.photos)
    evaluations = settings_of(recipe, identity=recipe.evaluation.identity, clip=recipe.evaluation.clip)
    settings = replace(evaluations, seeds=final.seeds, class_images=final.class_images)
    models = [
        EvaluatedModel(BASE, recipe.base),
        *(EvaluatedModel(name, recipe.base, a, words) for name, a in artifacts.items()),
    ]
    lists = final_prompts(card.space, recipe)
    if gpus or recipe.parallel.engine != "local":
        workers = recipe.parallel.workers[1]
        draw_on_workers(
            models, subject, lists, settings, store=store, home=home, workers=workers, gpus=gpus, on_row=on_row
        )
    found = evaluate(models, subject, lists, settings, home=home, on_row=on_row)
    assert found is not None  # one process is rank 0
    with Recorder(home / "records") as recorder:
        found.record(recorder)
    rows = [row for row in found.differences if (row["model"], row["against"]) == (TUNED, DEFAULT)]
    gain = quality_gain(found, settings.split, TUNED, DEFAULT, settings.clip)
    if gain is not None and rows:
        rows.insert(0, {**rows[0], "metric": "quality", **asdict(gain)})
    return verdict(rows, card.metric, winner.number, held_out.split)


def verdict(rows: list[dict[str, Any]], metric: str, winner: int, where: str = "the final split") -> FinalVerdict:
    """What paired differences (winner minus default) say; the winner wins when the whole interval does.

    where: what they were measured on, as the sentence has it.
    """
    row = next((row for row in rows if row["metric"] == metric), None)
    if row is None or row["low"] is None:
        sentence = f"Trial {winner} has no interval of {metric} against the default: judge by the table."
        return FinalVerdict(winner=winner, beats_default=False, sentence=sentence, differences=rows)
    sign = 1 if METRICS[metric] == "max" else -1
    gap = f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] in {metric} on {where}"
    if min(sign * row["low"], sign * row["high"]) > 0:
        sentence = f"Trial {winner} beats the default: {gap}."
    elif max(sign * row["low"], sign * row["high"]) < 0:
        sentence = f"Trial {winner} is worse than the default: {gap}. Keep the default."
    else:
        sentence = f"Trial {winner} does not beat the default: {gap}, which does not leave 0 out."
    beats = min(sign * row["low"], sign * row["high"]) > 0
    return FinalVerdict(winner=winner, beats_default=beats, sentence=sentence, differences=rows)


def _write_recipe(path: Path, card: SearchCard, recipe: Recipe, trial: Trial, metric: str) -> None:
    chosen = override(recipe, trial.parameters if trial.number else {})
    scores = ", ".join(f"{name} {value:.4f}" for name, value in trial.metrics.items())
    head = f"# Trial {trial.number} of the search {card.name}, ranked by {metric} on the tune split: {scores}.\n"
    changed = "".join(f"# {key} = {value}\n" for key, value in trial.parameters.items())
    write_text(path, head + changed + yaml_loader.dump(chosen.model_dump(mode="json")))
