"""Evaluate: draw every model's images under equal conditions, and score them beside the rows that give meaning.

Every rank of the group calls `evaluate`; each draws its share, rank 0 scores. The images stay in `home/pictures`, so
the same call again only scores, a call with another model only draws that one's, and workers of a cluster that have
called `render` leave a process alone nothing but the scoring.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from sdxl_ray.config.schema import MaxTokenLength
from sdxl_ray.data.png import save_png
from sdxl_ray.evaluation.encoders import Encoder, load_encoder
from sdxl_ray.evaluation.evaluated_models import REAL, EvaluatedModel, check_models
from sdxl_ray.evaluation.image_store import GenerationSettings, ImageJob, ImageStore, draw
from sdxl_ray.evaluation.prior_loss import DRAWS, notes_path, prior_losses, read_notes, write_notes
from sdxl_ray.evaluation.prompts import Prompts, Split, fill
from sdxl_ray.evaluation.score_table import ScoreTable, SubjectEncoder, split_at
from sdxl_ray.evaluation.subject import Subject, require_unseen
from sdxl_ray.io.collectives import Collectives, SingleProcess
from sdxl_ray.io.records import Recorder
from sdxl_ray.io.rows import OnRow
from sdxl_ray.metrics.bootstrap import RESAMPLES, FloatArray, Terms
from sdxl_ray.models.pipeline import load_pipeline
from sdxl_ray.models.truncation import prompt_notes
from sdxl_ray.report.document import joined

#: First seed of each split: what chose a checkpoint or won a search is judged by other noise.
FIRST_SEED: dict[Split, int] = {"validation": 1_000_000, "tune": 2_000_000, "final": 3_000_000}
_LARGEST_PHOTO = 512  # pixels, of the copies that reports show


@dataclass(frozen=True)
class EvaluationSettings:
    """Equal conditions. seeds: images per prompt; class_images: per class prompt; identity, clip: encoders.

    steps: numbers of denoising steps that the subject is drawn with besides, `step_seeds` images per prompt.
    """

    drawing: GenerationSettings
    split: Split = "final"
    seeds: int = 4
    class_images: int = 16
    identity: str = "tiny-identity"
    clip: str = "tiny-clip"
    resamples: int = RESAMPLES
    draws: int = DRAWS
    steps: tuple[int, ...] = ()
    step_seeds: int = 1
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def seeds_of(self, count: int) -> range:
        """The seeds of this split."""
        return range(FIRST_SEED[self.split], FIRST_SEED[self.split] + count)


@dataclass(frozen=True)
class EvaluationPlan:
    """Every image that an evaluation needs, by model: `subject` in [prompt][seed] order, and of the plain class.

    at: number of denoising steps -> the subject once more (`Settings.steps`).
    """

    subject: dict[str, list[list[ImageJob]]]
    classes: dict[str, list[ImageJob]]
    texts: tuple[str, ...]  # what the subject's images are scored against: the prompts about the class
    class_texts: tuple[str, ...]  # of each class image
    at: dict[int, dict[str, list[list[ImageJob]]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, models: Sequence[EvaluatedModel], class_name: str, prompts: Prompts, settings: EvaluationSettings
    ) -> EvaluationPlan:
        """The base draws the class where others draw the subject: an identifier it never learnt only disturbs it."""
        drawing = replace(
            settings.drawing,
            precision=str(settings.dtype).removeprefix("torch."),
            max_token_length=settings.drawing.max_token_length or max(model.max_token_length for model in models),
        )
        lists, class_prompts = prompts.of(settings.split), prompts.class_prompts
        texts = [fill(prompt, class_name, article=True) for prompt in lists]
        class_jobs = [
            (fill(prompt, class_name, article=True), seed)
            for seed in settings.seeds_of(settings.class_images)
            for prompt in class_prompts
        ]

        def subject(drawing: GenerationSettings, seeds: int) -> dict[str, list[list[ImageJob]]]:
            return {
                model.name: [
                    [ImageJob(model, text if model.words is None else fill(prompt, model.words), seed, drawing)
                     for seed in settings.seeds_of(seeds)]
                    for prompt, text in zip(lists, texts, strict=True)
                ]
                for model in models
            }  # fmt: skip

        classes = {model.name: [ImageJob(model, text, seed, drawing) for text, seed in class_jobs] for model in models}
        at = {n: subject(replace(drawing, num_inference_steps=n), settings.step_seeds) for n in settings.steps}
        class_texts = tuple(text for text, _ in class_jobs)
        return cls(subject(drawing, settings.seeds), classes, tuple(texts), class_texts, at)

    @property
    def max_token_length(self) -> MaxTokenLength:
        """Tokens of a prompt that are used."""
        return next(iter(self.classes.values()))[0].drawing.max_token_length or 75

    def jobs(self, model: EvaluatedModel) -> list[ImageJob]:
        """Seed by seed, so that more seeds only add to the end; then other numbers of steps, one after another."""
        by_seed = zip(*self.subject[model.name], strict=True)
        besides = [job for drawn in self.at.values() for jobs in drawn[model.name] for job in jobs]
        return [*(job for jobs in by_seed for job in jobs), *self.classes[model.name], *besides]


@dataclass(frozen=True)
class EvaluationResult:
    """Rows of the tables `scores` and `images`; missing: metric -> why there are no scores of it.

    A score that could not be computed has the value None in `scores`; it is no row of the records. differences: of
    every two models, under the same prompts, seeds and photos. terms: (split, model, metric) -> what that score is the
    mean of, so that several trainings and subjects can be joined.
    """

    scores: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    images: list[dict[str, Any]]
    missing: dict[str, str]
    terms: dict[tuple[str, str, str], Terms]

    @property
    def absent(self) -> list[str]:
        """A line for each reason, with the metrics that it concerns."""
        by: dict[str, list[str]] = {}
        for metric, reason in self.missing.items():
            by.setdefault(reason, []).append(metric)
        return [
            f"{joined(names)} {'is' if len(names) == 1 else 'are'} absent: {reason}" for reason, names in by.items()
        ]

    def record(self, recorder: Recorder) -> None:
        """Write every row."""
        for row in self.scores:
            if row["value"] is not None:
                recorder.write("scores", row)
        for table, rows in (("differences", self.differences), ("pictures", self.images)):
            for row in rows:
                recorder.write(table, row)


def evaluate(
    models: Sequence[EvaluatedModel],
    subject: Subject,
    prompts: Prompts,
    settings: EvaluationSettings,
    *,
    home: Path,
    group: Collectives | None = None,
    on_row: OnRow = lambda _: None,
) -> EvaluationResult | None:
    """Collective. Score models and reference rows; the evaluation on rank 0, None on the others.

    Raises UserError before anything is drawn: models of different bases or of one name, a photo that was trained on, an
    encoder that cannot be reached.
    """
    group = group or SingleProcess()
    plan = check(models, subject, prompts, settings, on_row)
    encoders = (
        load_subject_encoder(subject, plan, settings) if group.rank == 0 else None
    )  # missing shows before hours of drawing
    if encoders is not None:
        report_truncation(models, plan, encoders.clip, on_row)
    began = time.monotonic()
    losses = render(models, plan, settings, home, group, on_row)
    if encoders is None:
        return None
    store, base = ImageStore(home / "pictures"), _untuned(models)
    each_s = (time.monotonic() - began) / len(models)
    scores = ScoreTable(subject, settings.split, settings.resamples, encoders)
    for number, model in enumerate(models):
        on_row({"kind": "phase", "name": "scoring", "done": number, "total": len(models)})
        scores.add(
            model,
            store.grid(plan.subject[model.name]),
            store.grid([plan.classes[model.name]])[0],
            store.grid([plan.classes[base.name]])[0] if base else [],
            losses.get(model.name),
            each_s,
        )
        for steps, jobs in plan.at.items():
            scores.add_steps(model, steps, store.grid(jobs[model.name]))
    scores.add_references()
    if base is not None:
        scores.add_gains(base.name)
    images = _image_rows(models, subject, plan, store, settings, home)
    return EvaluationResult(scores.rows, scores.differences(), images, scores.missing, scores.terms)


def check(
    models: Sequence[EvaluatedModel],
    subject: Subject,
    prompts: Prompts,
    settings: EvaluationSettings,
    on_row: OnRow = lambda _: None,
) -> EvaluationPlan:
    """The plan, once everything that can be wrong before drawing is known to be right. Raises UserError."""
    check_models(models)
    for name in require_unseen(subject.photos, models):
        on_row({"kind": "note", "text": f"what {name} was trained on is not here: overlap with the photos is unknown"})
    return EvaluationPlan.of(models, subject.class_name, prompts, settings)


def report_truncation(models: Sequence[EvaluatedModel], plan: EvaluationPlan, clip: Encoder, on_row: OnRow) -> None:
    """Notes on prompts of which a model draws, or clip_t scores, the beginning alone."""
    asked = dict.fromkeys(job.prompt for model in models for job in plan.jobs(model))
    named = [("a prompt", prompt) for prompt in asked]
    notes = prompt_notes(models[0].tokenizers(), named, plan.max_token_length, "max_token_length ")
    cuts = clip.truncations([*plan.texts, *plan.class_texts])
    if cuts:
        notes.append(f"clip_t is of the first {cuts[0].used} tokens of {len(cuts)} prompts: {clip.name} takes no more")
    for note in notes:
        on_row({"kind": "note", "text": f"note: {note}"})


def render(
    models: Sequence[EvaluatedModel],
    plan: EvaluationPlan,
    settings: EvaluationSettings,
    home: Path,
    group: Collectives,
    on_row: OnRow,
) -> dict[str, FloatArray]:
    """Collective. Draw what `home/pictures` lacks, each rank its share; the prior losses by model, on every rank.

    There are no losses without the base, whose class images they are of. Raises RunError as `generate` does.
    """
    base, store = _untuned(models), ImageStore(home / "pictures")
    order = sorted(models, key=lambda model: model is not base)  # the base's class images serve the others
    for number, model in enumerate(order):
        with _pipeline(model, settings, on_row) as pipe:
            for _, jobs in groupby(plan.jobs(model), key=lambda job: job.drawing):  # a batch has one number of steps
                draw(pipe, list(jobs), store, group, _progress(f"drawing {model.name}", on_row))
            group.barrier()
            if base is not None and number % group.world == group.rank:
                known_losses(model, pipe, plan, plan.classes[base.name], store, settings)
    group.barrier()
    if base is None:
        return {}
    return {m.name: known_losses(m, _not_asked, plan, plan.classes[base.name], store, settings) for m in models}


def _untuned(models: Sequence[EvaluatedModel]) -> EvaluatedModel | None:
    return next((model for model in models if model.artifact is None), None)


def _not_asked() -> Any:
    raise AssertionError("some rank has measured it")


def load_subject_encoder(
    subject: Subject, plan: EvaluationPlan, settings: EvaluationSettings, prefix: str = "--"
) -> SubjectEncoder:
    """The encoders of `settings` with what they say of the photos and prompts. Raises UserError as they do.

    prefix: of the settings' names, as the user knows them.
    """
    identity, clip = (
        load_encoder(name, device=settings.device, setting=f"{prefix}{kind}")
        for kind, name in (("identity", settings.identity), ("clip", settings.clip))
    )
    return SubjectEncoder(identity, clip, subject, plan.texts, plan.class_texts)


@contextmanager
def _pipeline(model: EvaluatedModel, settings: EvaluationSettings, on_row: OnRow) -> Iterator[Callable[[], Any]]:
    """A function that loads the model when it is first called; its memory is given back at the end."""

    @cache
    def load() -> Any:
        on_row({"kind": "phase", "name": f"loading {model.name}", "done": 0, "total": 0})
        return load_pipeline(model.base, model.artifact, dtype=settings.dtype, device=settings.device)

    yield load
    load.cache_clear()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()


def known_losses(
    model: EvaluatedModel,
    pipe: Callable[[], Any],
    plan: EvaluationPlan,
    of: Sequence[ImageJob],
    store: ImageStore,
    settings: EvaluationSettings,
) -> FloatArray:
    """The model's prior losses on the class images `of`: kept beside the images, computed when they are not there.

    `pipe` is only called when they have to be.
    """
    seed = FIRST_SEED[settings.split]
    what = [model.identity, [job.key for job in of], seed, settings.draws, str(settings.dtype)]
    path = notes_path(store.folder, what)
    losses = read_notes(path)
    if losses is None or len(losses) != len(of):
        losses = prior_losses(
            pipe(),
            [store.read(job) for job in of],
            plan.class_texts,
            seed,
            settings.draws,
            max_token_length=plan.max_token_length,
        )
        write_notes(path, losses)
    return losses


def _image_rows(
    models: Sequence[EvaluatedModel],
    subject: Subject,
    plan: EvaluationPlan,
    store: ImageStore,
    settings: EvaluationSettings,
    home: Path,
) -> list[dict[str, Any]]:
    """Where every image is. `prompt` is the one about the class, so that models can be laid side by side."""

    seconds = store.seconds()

    def row(
        model: EvaluatedModel, prompt: str, job: ImageJob, purpose: str, split: str = settings.split
    ) -> dict[str, Any]:
        path = store.path(job).relative_to(home).as_posix()
        return {"subject": subject.name, "step": model.step, "model": model.name, "prompt": prompt, "seed": job.seed,
                "path": path, "purpose": purpose, "split": split, "seconds": seconds.get(job.key)}  # fmt: skip

    rows = []
    for model in models:
        drawn: list[tuple[str, list[list[ImageJob]]]] = [(settings.split, plan.subject[model.name])]
        drawn += [(split_at(settings.split, steps), jobs[model.name]) for steps, jobs in plan.at.items()]
        for split, by_prompt in drawn:
            for text, jobs in zip(plan.texts, by_prompt, strict=True):
                rows += [row(model, text, job, "subject", split) for job in jobs]
        classes = zip(plan.class_texts, plan.classes[model.name], strict=True)
        rows += [row(model, text, job, "class") for text, job in classes]
    for number, photo in enumerate(subject.photos):
        copy = photo.image.copy()
        copy.thumbnail((_LARGEST_PHOTO, _LARGEST_PHOTO))
        path = store.folder / REAL / f"{photo.pixels[:16]}.png"
        save_png(copy, path, {"photo": photo.name})
        rows.append({"subject": subject.name, "step": 0, "model": REAL, "prompt": "", "seed": number,
                     "path": path.relative_to(home).as_posix(), "purpose": REAL, "split": settings.split})  # fmt: skip
    return rows


def _progress(name: str, on_row: OnRow) -> Callable[[int, int], None]:
    return lambda done, total: on_row({"kind": "phase", "name": name, "done": done, "total": total})
