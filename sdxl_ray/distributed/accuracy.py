"""The accuracy of an experiment's arms: every arm and the base, judged by each subject's held-out photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdxl_ray.artifact import Artifact
from sdxl_ray.config import Recipe
from sdxl_ray.core.quality.defaults import settings_of
from sdxl_ray.core.quality.encoders import load_encoder
from sdxl_ray.core.quality.evaluate import Evaluation, Settings, evaluate
from sdxl_ray.core.quality.models import BASE, Model
from sdxl_ray.core.quality.pooling import Pool
from sdxl_ray.core.quality.prompts import Prompts, default_prompts, fill, load_prompts
from sdxl_ray.core.quality.subject import Subject, held_out_photos, load_photos, subject_name
from sdxl_ray.core.runfolder import scan_pictures
from sdxl_ray.distributed.cluster import gpus_per_worker
from sdxl_ray.distributed.drawing import draw_on_workers
from sdxl_ray.distributed.stream import streams
from sdxl_ray.experiment import Experiment, Run
from sdxl_ray.records import Recorder
from sdxl_ray.report.source import Drawing
from sdxl_ray.storage import Storage

OnRow = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Judgement:
    """Scores of arms by subject and over all, and how the pictures behind them were drawn."""

    evaluation: Evaluation
    drawing: Drawing


def require_judgeable(experiment: Experiment, runs: Sequence[Run]) -> None:
    """Raise UserError for what would stop the judging after hours of training: prompts, photos, encoders.

    Photos: those of references, and held-out ones that an arm trains on (large sets are looked at when they are read).
    """
    for recipe in {run.recipe.data: run.recipe for run in runs if not streams(run.recipe)}.values():
        scan_pictures(recipe)
    judged = [run for run in runs if run.recipe.data.known_class is not None and run.recipe.data.subject is not None]
    for subject, some in _by_subject(judged).items():
        recipe = some[0].recipe
        _prompts(experiment, recipe).of(_settings(experiment, recipe).split)
        other = _other(experiment, subject)
        if other is not None:
            load_photos(other, "other")
    if not judged:
        return
    settings = _settings(experiment, judged[0].recipe)
    for kind, name in (("identity", settings.identity), ("clip", settings.clip)):
        load_encoder(name, setting=f"--{kind}")


def judge(
    experiment: Experiment,
    runs: Sequence[Run],
    artifacts: Sequence[Artifact],
    place: Storage,
    home: Path,
    workers: int,
    on_row: OnRow,
) -> Judgement | None:
    """Score the base and every run into `home`; None, with a note, for arms that have no subject.

    artifacts: of the runs, in their order. home: a folder of `place`. workers: of the connected cluster that draw; 0:
    this process does. Pictures that are there already are not drawn again.
    """
    of = {id(run): artifact for run, artifact in zip(runs, artifacts, strict=True)}
    found: dict[str, Evaluation] = {}
    prompts: list[str] = []
    members: dict[str, list[str]] = {}
    settings = _settings(experiment, runs[0].recipe)
    for subject, some in _by_subject(runs).items():
        recipe = some[0].recipe
        class_name = recipe.data.known_class
        if class_name is None or recipe.data.subject is None:
            on_row({"kind": "note", "text": "no accuracy: the arms have no subject, only captions"})
            return None
        lists = _prompts(experiment, recipe)
        other = _other(experiment, subject)
        judged = Subject(
            subject or subject_name(str(recipe.data.images)),
            class_name,
            held_out_photos(of[id(some[0])]),
            load_photos(other, "other") if other is not None else (),
        )
        members = _members(some)
        models = [Model(BASE, recipe.base)]
        names = {arm: iter(trainings) for arm, trainings in members.items()}
        models += [Model(next(names[r.arm]), r.recipe.base, of[id(r)], r.recipe.data.subject) for r in some]
        if workers:
            gpus = gpus_per_worker(recipe)
            draw_on_workers(
                models, judged, lists, settings, place=place, home=home, workers=workers, gpus=gpus, on_row=on_row
            )
        scored = evaluate(models, judged, lists, settings, home=home, on_row=on_row)
        assert scored is not None  # one process is rank 0
        found[judged.name] = scored
        prompts += [fill(prompt, class_name, article=True) for prompt in lists.of(settings.split)]
    pool = Pool(found, members, settings.resamples)
    joined = Evaluation(pool.scores(), pool.differences(), _pictures(found, members), _absent(found), {})
    with Recorder(home / "records") as recorder:
        joined.record(recorder)
    drawing = Drawing(
        seeds=list(settings.seeds_of(settings.seeds)),
        steps=settings.drawing.num_inference_steps,
        guidance=settings.drawing.guidance_scale,
        batch=settings.drawing.batch_size,
        prompts=list(dict.fromkeys(prompts)),
    )
    return Judgement(joined, drawing)


def _by_subject(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.subject, []).append(run)
    return found


def _members(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Arm -> what its trainings on one subject are called while they are scored: the arm itself when there is one."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.arm] = counts.get(run.arm, 0) + 1
    return {arm: [arm] if n == 1 else [f"{arm} ({number})" for number in range(1, n + 1)] for arm, n in counts.items()}


def _settings(experiment: Experiment, recipe: Recipe) -> Settings:
    settings = settings_of(recipe)
    return replace(
        settings,
        seeds=experiment.seeds,
        class_pictures=experiment.class_pictures,
        steps=experiment.steps,
        step_seeds=experiment.step_seeds,
    )


def _prompts(experiment: Experiment, recipe: Recipe) -> Prompts:
    assert recipe.data.known_class is not None
    return load_prompts(experiment.prompts or default_prompts(recipe.base.id, recipe.data.known_class))


def _other(experiment: Experiment, subject: str) -> str | None:
    return experiment.subjects[subject].other if subject else experiment.other


def _pictures(found: Mapping[str, Evaluation], members: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Rows of every subject; of an arm those of its first training."""
    named = {trainings[0]: arm for arm, trainings in members.items()}
    others = {name for trainings in members.values() for name in trainings[1:]}
    return [
        {**row, "model": named.get(row["model"], row["model"])}
        for evaluation in found.values()
        for row in evaluation.pictures
        if row["model"] not in others
    ]


def _absent(found: Mapping[str, Evaluation]) -> list[str]:
    several = len(found) > 1
    said = [f"{name}: {line}" if several else line for name, scored in found.items() for line in scored.absent]
    return list(dict.fromkeys(said))
