"""The accuracy of an experiment's arms: every arm and the base, judged by each subject's held-out photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdxl_ray.comparison.merged_arms import require_makeable
from sdxl_ray.config.experiment import ArmRun, Experiment
from sdxl_ray.config.notes import report_notes
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.data.unused_files import unused
from sdxl_ray.distributed.cluster import gpus_per_worker
from sdxl_ray.distributed.generation import draw_on_workers
from sdxl_ray.distributed.ray_data import streams
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.aggregate import Pool
from sdxl_ray.evaluation.defaults import settings_of
from sdxl_ray.evaluation.encoders import encoder_revision, load_encoder
from sdxl_ray.evaluation.evaluated_models import BASE, EvaluatedModel
from sdxl_ray.evaluation.prompts import Prompts, default_prompts, fill, load_prompts
from sdxl_ray.evaluation.runner import EvaluationResult, EvaluationSettings, evaluate
from sdxl_ray.evaluation.subject import (
    Subject,
    kept_photos,
    load_photos,
    photos_of,
    require_another,
    require_untrained,
    subject_name,
)
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import Recorder
from sdxl_ray.io.rows import OnRow
from sdxl_ray.io.storage import Storage
from sdxl_ray.models.base_model_files import locate
from sdxl_ray.report.source import GenerationCard
from sdxl_ray.training.run_directory import APART, require_own, scan_images
from sdxl_ray.training.trainer import Splits


@dataclass(frozen=True)
class ArmEvaluation:
    """Scores of arms by subject and over all, and how the images behind them were drawn.

    encoders: name -> SHA-256 over its files.
    """

    evaluation: EvaluationResult
    drawing: GenerationCard
    encoders: dict[str, str]


def require_evaluable(experiment: Experiment, runs: Sequence[ArmRun], store: Storage, name: str) -> None:
    """Raise UserError for what would stop a comparison after hours of training.

    That is: prompts, photos, encoders, arms of different bases, and run folders in the storage that are of
    something else. Photos: those of references, and held-out ones that an arm trains on (large sets are looked at
    when they are read).
    """
    some_of = {run.recipe.data: run.recipe for run in runs if not streams(run.recipe)}
    scanned = {data: scan_images(recipe) for data, recipe in some_of.items()}
    _require_one_base(runs)
    for run in runs:
        if run.merge is not None:
            folder = store.root / run.named(name)
            store.get_folder(folder)
            require_makeable(run, folder)
        elif run.recipe.data in scanned:
            folder = store.root / run.named(name)
            store.get_folder(folder, APART)
            fix = "give another --storage, or move the folder away"
            require_own(run.recipe, folder, scanned[run.recipe.data], fix)
    judged = [run for run in runs if run.recipe.data.known_class is not None and run.recipe.data.subject is not None]
    for subject, some in _by_subject(judged).items():
        recipe = some[0].recipe
        _prompts(experiment, recipe).of(_settings(experiment, recipe).split)
        _require_photos(some, _other(experiment, subject), [scanned.get(run.recipe.data) for run in some])
    if not judged:
        return
    settings = _settings(experiment, judged[0].recipe)
    for kind, encoder in (("identity", settings.identity), ("clip", settings.clip)):
        _require_same_encoder(kind, judged)
        load_encoder(encoder, setting=f"evaluation.{kind}")


def _require_one_base(runs: Sequence[ArmRun]) -> None:
    """By revision, as the models are compared when they are judged."""
    revisions = {base: locate(base).revision for base in {run.recipe.base for run in runs}}
    first = runs[0]
    for run in runs:
        if revisions[run.recipe.base] != revisions[first.recipe.base]:
            raise UserError(
                f"arm {run.arm!r} is of base {run.recipe.base.id!r}, arm {first.arm!r} of {first.recipe.base.id!r}: "
                "arms are compared on one base, make an experiment for each"
            )


def _require_photos(runs: Sequence[ArmRun], other: str | None, scanned: Sequence[Splits | None]) -> None:
    """Of one subject: no arm trains on the photos that all of them are judged by, and `other` is another one.

    scanned: the images of each run, None for those that are read later.
    """
    others = load_photos(other, "other") if other is not None else ()
    first = scanned[0]
    photos = photos_of(first.held_out) if first is not None else ()
    for run, images in zip(runs, scanned, strict=True):
        if images is not None and (images is not first or first.given_class):
            require_untrained(photos, (*images.train, *images.given_class), run.arm, _held_out_by(runs[0]))
        if images is not None and others:
            require_another(others, (*photos, *photos_of(images.train)), "other")


def _held_out_by(run: ArmRun) -> str:
    data = run.recipe.data
    return f"arm {run.arm!r}, data.{f'holdout={data.holdout}' if data.validation is None else 'validation'}"


def _require_same_encoder(kind: str, runs: Sequence[ArmRun]) -> None:
    named = {getattr(run.recipe.evaluation, kind): run.arm for run in runs}
    if len(named) > 1:
        reported = ", ".join(f"{name or 'the default'} in arm {arm!r}" for name, arm in named.items())
        raise UserError(f"evaluation.{kind} is {reported}: all are judged by one encoder, set it for every arm")


def judge(
    experiment: Experiment,
    runs: Sequence[ArmRun],
    artifacts: Sequence[Artifact],
    store: Storage,
    home: Path,
    workers: int,
    on_row: OnRow,
) -> ArmEvaluation | None:
    """Score the base and every run into `home`; None, with a note, for arms that have no subject.

    artifacts: of the runs, in their order. home: a folder of `place`. workers: of the connected cluster that draw; 0:
    this process does. Images that are there already are not drawn again.
    """
    of = {id(run): artifact for run, artifact in zip(runs, artifacts, strict=True)}
    found: dict[str, EvaluationResult] = {}
    prompts: list[str] = []
    members: dict[str, list[str]] = {}
    settings = _settings(experiment, runs[0].recipe)
    for subject, some in _by_subject(runs).items():
        recipe = some[0].recipe
        class_name = recipe.data.known_class
        if class_name is None or recipe.data.subject is None:
            on_row({"kind": "note", "text": "no accuracy: the arms have no subject, only captions"})
            _record(None, home)
            return None
        lists = _prompts(experiment, recipe)
        other = _other(experiment, subject)
        report_notes(unused(other, "other", "photos") if other is not None else [], on_row)
        judged = Subject(
            subject or subject_name(str(recipe.data.images)),
            class_name,
            kept_photos(of[id(some[0])]),
            load_photos(other, "other") if other is not None else (),
        )
        members = _members(some)
        models = [EvaluatedModel(BASE, recipe.base)]
        names = {arm: iter(trainings) for arm, trainings in members.items()}
        models += [EvaluatedModel(next(names[r.arm]), r.recipe.base, of[id(r)], r.recipe.data.subject) for r in some]
        if workers:
            gpus = gpus_per_worker(recipe)
            draw_on_workers(
                models, judged, lists, settings, store=store, home=home, workers=workers, gpus=gpus, on_row=on_row
            )
        scored = evaluate(models, judged, lists, settings, home=home, on_row=on_row)
        assert scored is not None  # one process is rank 0
        found[judged.name] = scored
        prompts += [fill(prompt, class_name, article=True) for prompt in lists.of(settings.split)]
    pool = Pool(found, members, settings.resamples)
    joined = EvaluationResult(pool.scores(), pool.differences(), _images(found, members), _missing(found), {})
    _record(joined, home)
    drawing = GenerationCard(
        seeds=list(settings.seeds_of(settings.seeds)),
        steps=settings.drawing.num_inference_steps,
        guidance=settings.drawing.guidance_scale,
        batch=settings.drawing.batch_size,
        prompts=list(dict.fromkeys(prompts)),
    )
    encoders = {name: encoder_revision(name) for name in (settings.identity, settings.clip)}
    return ArmEvaluation(joined, drawing, encoders)


def _record(found: EvaluationResult | None, home: Path) -> None:
    """Write the rows in the place of those of earlier calls, which may be of subjects that are no longer compared."""
    with Recorder(home / "records") as recorder:
        for table in ("scores", "differences", "pictures"):
            recorder.forget(table)
        if found is not None:
            found.record(recorder)


def _by_subject(runs: Sequence[ArmRun]) -> dict[str, list[ArmRun]]:
    found: dict[str, list[ArmRun]] = {}
    for run in runs:
        found.setdefault(run.subject, []).append(run)
    return found


def _members(runs: Sequence[ArmRun]) -> dict[str, list[str]]:
    """Arm -> what its trainings on one subject are called while they are scored: the arm itself when there is one."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.arm] = counts.get(run.arm, 0) + 1
    return {arm: [arm] if n == 1 else [f"{arm} ({number})" for number in range(1, n + 1)] for arm, n in counts.items()}


def _settings(experiment: Experiment, recipe: Recipe) -> EvaluationSettings:
    settings = settings_of(recipe, identity=recipe.evaluation.identity, clip=recipe.evaluation.clip)
    return replace(
        settings,
        seeds=experiment.seeds,
        class_images=experiment.class_images,
        steps=experiment.steps,
        step_seeds=experiment.step_seeds,
    )


def _prompts(experiment: Experiment, recipe: Recipe) -> Prompts:
    assert recipe.data.known_class is not None
    return load_prompts(experiment.prompts or default_prompts(recipe.base.id, recipe.data.known_class))


def _other(experiment: Experiment, subject: str) -> str | None:
    return experiment.subjects[subject].other if subject else experiment.other


def _images(found: Mapping[str, EvaluationResult], members: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Rows of every subject; of an arm those of its first training."""
    named = {trainings[0]: arm for arm, trainings in members.items()}
    others = {name for trainings in members.values() for name in trainings[1:]}
    return [
        {**row, "model": named.get(row["model"], row["model"])}
        for evaluation in found.values()
        for row in evaluation.images
        if row["model"] not in others
    ]


def _missing(found: Mapping[str, EvaluationResult]) -> dict[str, str]:
    """Metric -> why a subject has no scores of it; the subject is named where that is not so of all."""
    missing: dict[str, str] = {}
    for metric in dict.fromkeys(metric for scored in found.values() for metric in scored.missing):
        reasons = {name: scored.missing[metric] for name, scored in found.items() if metric in scored.missing}
        same = len(reasons) == len(found) and len(set(reasons.values())) == 1
        said = reasons.values() if same else (f"{name}: {reason}" for name, reason in reasons.items())
        missing[metric] = "; ".join(dict.fromkeys(said))
    return missing
