"""Evaluate: draw every model's pictures under equal conditions, and score them beside the rows that give meaning.

Every rank of the group calls `evaluate`; each draws its share, rank 0 scores. The pictures stay in `home/pictures`, so
the same call again only scores, and a call with another model only draws that one's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sdxl_ray.core.group import Alone, Group
from sdxl_ray.core.pipeline import load_pipeline
from sdxl_ray.core.quality.drawing import Drawing, Job, PictureStore, draw, save_png
from sdxl_ray.core.quality.encoders import load_encoder
from sdxl_ray.core.quality.intervals import RESAMPLES, Array, Terms
from sdxl_ray.core.quality.models import REAL, Model, check_models
from sdxl_ray.core.quality.prior import DRAWS, notes_path, prior_losses, read_notes, write_notes
from sdxl_ray.core.quality.prompts import Prompts, Split, fill
from sdxl_ray.core.quality.subject import Subject, require_unseen
from sdxl_ray.core.quality.table import Looks, Scores
from sdxl_ray.records import Recorder

OnRow = Callable[[dict[str, Any]], None]

#: First seed of each split: what chose a checkpoint or won a search is judged by other noise.
FIRST_SEED: dict[Split, int] = {"validation": 1_000_000, "tune": 2_000_000, "final": 3_000_000}
_LARGEST_PHOTO = 512  # pixels, of the copies that reports show


@dataclass(frozen=True)
class Settings:
    """Equal conditions. seeds: pictures per prompt; class_pictures: per class prompt; identity, clip: encoders."""

    drawing: Drawing
    split: Split = "final"
    seeds: int = 4
    class_pictures: int = 16
    identity: str = "tiny-identity"
    clip: str = "tiny-clip"
    resamples: int = RESAMPLES
    draws: int = DRAWS
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def seeds_of(self, count: int) -> range:
        """The seeds of this split."""
        return range(FIRST_SEED[self.split], FIRST_SEED[self.split] + count)


@dataclass(frozen=True)
class Plan:
    """Every picture that an evaluation needs, by model: `subject` in [prompt][seed] order, and of the plain class."""

    subject: dict[str, list[list[Job]]]
    classes: dict[str, list[Job]]
    texts: tuple[str, ...]  # what the subject's pictures are scored against: the prompts about the class
    class_texts: tuple[str, ...]  # of each class picture

    @classmethod
    def of(cls, models: Sequence[Model], class_name: str, prompts: Prompts, settings: Settings) -> Plan:
        """The base draws the class where others draw the subject: an identifier it never learnt only disturbs it."""
        drawing = replace(settings.drawing, precision=str(settings.dtype).removeprefix("torch."))
        lists, class_prompts = prompts.of(settings.split), prompts.class_prompts
        texts = [fill(prompt, class_name, article=True) for prompt in lists]
        class_jobs = [
            (fill(prompt, class_name, article=True), seed)
            for seed in settings.seeds_of(settings.class_pictures)
            for prompt in class_prompts
        ]
        subject = {
            model.name: [
                [Job(model, text if model.words is None else fill(prompt, model.words), seed, drawing)
                 for seed in settings.seeds_of(settings.seeds)]
                for prompt, text in zip(lists, texts, strict=True)
            ]
            for model in models
        }  # fmt: skip
        classes = {model.name: [Job(model, text, seed, drawing) for text, seed in class_jobs] for model in models}
        return cls(subject, classes, tuple(texts), tuple(text for text, _ in class_jobs))

    def jobs(self, model: Model) -> list[Job]:
        """Seed by seed, so that more seeds only add to the end."""
        by_seed = zip(*self.subject[model.name], strict=True)
        return [job for jobs in by_seed for job in jobs] + self.classes[model.name]


@dataclass(frozen=True)
class Evaluation:
    """Rows of the tables `scores` and `pictures`; `absent` says which scores there are none of, and why.

    A score that could not be computed has the value None in `scores`; it is no row of the records. differences: of
    every two models, under the same prompts, seeds and photos. terms: (split, model, metric) -> what that score is the
    mean of, so that several trainings and subjects can be joined.
    """

    scores: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    pictures: list[dict[str, Any]]
    absent: list[str]
    terms: dict[tuple[str, str, str], Terms]

    def record(self, recorder: Recorder) -> None:
        """Write every row."""
        for row in self.scores:
            if row["value"] is not None:
                recorder.write("scores", row)
        for row in self.pictures:
            recorder.write("pictures", row)


def evaluate(
    models: Sequence[Model],
    subject: Subject,
    prompts: Prompts,
    settings: Settings,
    *,
    home: Path,
    group: Group | None = None,
    on_row: OnRow = lambda _: None,
) -> Evaluation | None:
    """Collective. Score models and reference rows; the evaluation on rank 0, None on the others.

    Raises UserError before anything is drawn: models of different bases or of one name, a photo that was trained on, an
    encoder that cannot be reached.
    """
    group = group or Alone()
    check_models(models)
    for name in require_unseen(subject.photos, models):
        on_row({"kind": "note", "text": f"what {name} was trained on is not here: overlap with the photos is unknown"})
    plan = Plan.of(models, subject.class_name, prompts, settings)
    looks = (
        _looks(subject, plan, settings) if group.rank == 0 else None
    )  # what is missing shows before hours of drawing
    store = PictureStore(home / "pictures")
    untuned = next((model for model in models if model.artifact is None), None)
    losses: dict[str, Array] = {}
    seconds: dict[str, float] = {}
    for model in sorted(models, key=lambda model: model is not untuned):  # the base's class pictures serve the others
        began = time.monotonic()
        with _pipeline(model, settings, on_row) as pipe:
            draw(pipe, plan.jobs(model), store, group, _progress(f"drawing {model.name}", on_row))
            group.barrier()
            if group.rank == 0 and untuned is not None:
                losses[model.name] = _losses(model, pipe, plan, plan.classes[untuned.name], store, settings)
        seconds[model.name] = time.monotonic() - began
    if looks is None:
        return None
    scores = Scores(subject, settings.split, settings.resamples, looks)
    for number, model in enumerate(models):
        on_row({"kind": "phase", "name": "scoring", "done": number, "total": len(models)})
        scores.add(
            model,
            [[store.read(job) for job in jobs] for jobs in plan.subject[model.name]],
            [store.read(job) for job in plan.classes[model.name]],
            [store.read(job) for job in plan.classes[untuned.name]] if untuned else [],
            losses.get(model.name),
            seconds[model.name],
        )
    scores.add_references()
    if untuned is not None:
        scores.add_gains(untuned.name)
    return Evaluation(
        scores.rows,
        scores.differences(),
        _picture_rows(models, subject, plan, store, settings, home),
        scores.absent,
        scores.terms,
    )


def _looks(subject: Subject, plan: Plan, settings: Settings) -> Looks:
    identity, clip = (
        load_encoder(name, device=settings.device, setting=f"--{kind}")
        for kind, name in (("identity", settings.identity), ("clip", settings.clip))
    )
    return Looks(identity, clip, subject, plan.texts)


@contextmanager
def _pipeline(model: Model, settings: Settings, on_row: OnRow) -> Iterator[Callable[[], Any]]:
    """A function that loads the model when it is first called; its memory is given back at the end."""

    @cache
    def load() -> Any:
        on_row({"kind": "phase", "name": f"loading {model.name}", "done": 0, "total": 0})
        return load_pipeline(model.base, model.artifact, dtype=settings.dtype, device=settings.device)

    yield load
    load.cache_clear()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()


def _losses(
    model: Model, pipe: Callable[[], Any], plan: Plan, of: Sequence[Job], store: PictureStore, settings: Settings
) -> Array:
    seed = FIRST_SEED[settings.split]
    what = [model.identity, [job.key for job in of], seed, settings.draws, str(settings.dtype)]
    path = notes_path(store.folder, what)
    losses = read_notes(path)
    if losses is None or len(losses) != len(of):
        losses = prior_losses(pipe(), [store.read(job) for job in of], plan.class_texts, seed, settings.draws)
        write_notes(path, losses)
    return losses


def _picture_rows(
    models: Sequence[Model], subject: Subject, plan: Plan, store: PictureStore, settings: Settings, home: Path
) -> list[dict[str, Any]]:
    """Where every picture is. `prompt` is the one about the class, so that models can be laid side by side."""

    def row(model: Model, prompt: str, job: Job, purpose: str) -> dict[str, Any]:
        path = store.path(job).relative_to(home).as_posix()
        return {**known, "step": model.step, "model": model.name, "prompt": prompt, "seed": job.seed, "path": path,
                "purpose": purpose}  # fmt: skip

    known = {"subject": subject.name, "split": settings.split}
    rows = []
    for model in models:
        for text, jobs in zip(plan.texts, plan.subject[model.name], strict=True):
            rows += [row(model, text, job, "subject") for job in jobs]
        classes = zip(plan.class_texts, plan.classes[model.name], strict=True)
        rows += [row(model, text, job, "class") for text, job in classes]
    for number, photo in enumerate(subject.photos):
        copy = photo.picture.copy()
        copy.thumbnail((_LARGEST_PHOTO, _LARGEST_PHOTO))
        path = store.folder / REAL / f"{photo.pixels[:16]}.png"
        save_png(copy, path, {"photo": photo.name})
        rows.append({**known, "step": 0, "model": REAL, "prompt": "", "seed": number,
                     "path": path.relative_to(home).as_posix(), "purpose": REAL})  # fmt: skip
    return rows


def _progress(name: str, on_row: OnRow) -> Callable[[int, int], None]:
    return lambda done, total: on_row({"kind": "phase", "name": name, "done": done, "total": total})
