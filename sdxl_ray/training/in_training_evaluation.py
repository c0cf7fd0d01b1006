"""Scores during training: the model as it trains, judged as an artifact is, with few images drawn by all ranks.

    examiner = prepare(recipe, images.train, images.held_out, components, setting)   # before anything trains
    look = examiner.look(engine, step=100)                                               # the same on every rank

Prompts, seeds, encoders and arithmetic are those of `evaluate`; only the images come from the live model. The base's
images are drawn once, by the untuned base, and are shared by all runs of a storage.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.data.dataset import ImageSet
from sdxl_ray.data.png import png_bytes
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.defaults import settings_of
from sdxl_ray.evaluation.encoders import locate_encoder
from sdxl_ray.evaluation.evaluated_models import BASE, REAL, EvaluatedModel
from sdxl_ray.evaluation.image_store import ImageStore, draw
from sdxl_ray.evaluation.prior_loss import prior_losses
from sdxl_ray.evaluation.prompts import Prompts, default_prompts, load_prompts
from sdxl_ray.evaluation.runner import (
    FIRST_SEED,
    EvaluationPlan,
    EvaluationSettings,
    known_losses,
    load_subject_encoder,
)
from sdxl_ray.evaluation.score_table import ScoreTable, SubjectEncoder
from sdxl_ray.evaluation.scores import LEAST_PHOTOS
from sdxl_ray.evaluation.subject import Subject, photos_of, require_untrained, subject_name
from sdxl_ray.io.collectives import Collectives, gathered
from sdxl_ray.io.rows import OnRow
from sdxl_ray.metrics.quality import Measured, References, quality, require_quality
from sdxl_ray.models.base_model import Components
from sdxl_ray.models.pipeline import generate
from sdxl_ray.training.engine import TrainingEngine
from sdxl_ray.training.samples import AT_ONCE, drawing, on_device

#: Held-out photos that a run is scored by, at most: they are encoded once, but a folder may hold thousands.
_MOST_PHOTOS = 32


@dataclass(frozen=True)
class StepScores:
    """The scores of one step. rows: of the table `scores`, quality among them; seconds: drawing and scoring."""

    step: int
    rows: list[dict[str, Any]]
    seconds: float

    @property
    def measured(self) -> dict[str, Measured]:
        """Metric -> (value, low, high), of the model."""
        return {r["metric"]: (r["value"], r["low"], r["high"]) for r in self.rows if r["model"] != REAL}

    @property
    def row(self) -> dict[str, Any]:
        """What the run reports."""
        metrics = {name: value for name, (value, _, _) in self.measured.items()}
        return {"kind": "scores", "step": self.step, "metrics": metrics, "seconds": self.seconds, "rows": self.rows}


@dataclass(frozen=True)
class ScoringSetup:
    """Where a run scores. name: of the run; cache: of the storage; size: pixels of an image's edge."""

    name: str
    group: Collectives
    cache: Path
    device: torch.device
    precision: torch.dtype
    size: int
    on_row: OnRow


def why_not(recipe: Recipe, held_out: int) -> str | None:
    """What keeps a run with so many held-out photos from being scored, or None."""
    if recipe.data.subject is None:
        return "data.subject is not set, for example data.subject='sks dog'"
    if recipe.data.known_class is None:
        return "the subject's class is not known: set data.class_name, for example data.class_name=dog"
    if held_out < LEAST_PHOTOS:
        return (
            f"{held_out} held-out photo{'s' if held_out != 1 else ''}, at least {LEAST_PHOTOS} are needed: set "
            f"data.holdout={LEAST_PHOTOS}, or data.validation to a folder of them"
        )
    return None


def require_scorable(recipe: Recipe, held_out: int) -> None:
    """Raise UserError when scores are asked for (`always`) that cannot be had."""
    reason = why_not(recipe, held_out)
    if recipe.evaluation.scores == "always" and reason is not None:
        raise UserError(f"evaluation.scores=always: {reason}")


def encoders_named(recipe: Recipe) -> bool:
    """Whether the recipe insists on its encoders: then a run does not begin without them."""
    asked = recipe.evaluation
    return asked.scores == "always" or (asked.scores == "auto" and bool(asked.identity or asked.clip))


def require_encoders(recipe: Recipe) -> None:
    """Raise UserError when an encoder that the recipe insists on is not to be had. Loads none."""
    if encoders_named(recipe):
        settings = settings_of(recipe, identity=recipe.evaluation.identity, clip=recipe.evaluation.clip)
        for kind in ("identity", "clip"):
            locate_encoder(getattr(settings, kind), setting=f"evaluation.{kind}")
        require_quality(settings.clip, "evaluation.clip")


def scoring_settings(recipe: Recipe, *, size: int, precision: torch.dtype) -> EvaluationSettings:
    """How a run scores. Encoders stay on the CPU, where they take no memory from training."""
    asked = recipe.evaluation
    settings = settings_of(
        recipe,
        size=size,
        batch=AT_ONCE,
        identity=asked.identity,
        clip=asked.clip,
        max_token_length=recipe.data.max_token_length,
    )
    return replace(
        settings,
        split=asked.split,
        seeds=asked.score_seeds,
        class_images=asked.class_images,
        dtype=precision,
        device=torch.device("cpu"),
    )


def scoring_prompts(recipe: Recipe) -> Prompts:
    """The prompts that a run scores with: the first of its split's list."""
    class_name, split = recipe.data.known_class, recipe.evaluation.split
    assert class_name is not None
    prompts = load_prompts(default_prompts(recipe.base.id, class_name))
    return prompts.model_copy(update={split: prompts.of(split)[: recipe.evaluation.score_prompts]})


def prepare(
    recipe: Recipe, train: ImageSet, held_out: ImageSet, components: Components, setting: ScoringSetup
) -> InTrainingEvaluation | None:
    """Collective. Draw and score the base while `components` still are the base; None for a run without scores.

    Raises UserError on every rank: scores asked for that cannot be had, a held-out photo that is trained on.
    """
    if recipe.evaluation.scores == "never" or recipe.evaluation.every == 0:
        return None
    require_scorable(recipe, len(held_out))
    reason = why_not(recipe, len(held_out))
    if reason is not None:
        setting.on_row({"kind": "note", "text": f"no scores during training: {reason}"})
        return None
    class_name = recipe.data.known_class
    assert class_name is not None
    settings = scoring_settings(recipe, size=setting.size, precision=setting.precision)
    live = EvaluatedModel(setting.name, recipe.base, words=recipe.data.subject)
    models = [EvaluatedModel(BASE, recipe.base), live]
    plan = EvaluationPlan.of(models, class_name, scoring_prompts(recipe), settings)
    encoders, subject, problem, unreachable = None, None, None, None
    if setting.group.rank == 0:
        try:
            photos = photos_of(held_out)[:_MOST_PHOTOS]
            require_untrained(photos, train, setting.name, "data.validation")
            subject = Subject(subject_name(str(recipe.data.images)), class_name, photos)
        except UserError as error:
            problem = str(error)
        else:
            try:
                encoders = load_subject_encoder(subject, plan, settings, "evaluation.")
            except UserError as error:
                unreachable = str(error)
    problem, unreachable = setting.group.gather((problem, unreachable))[0]
    if unreachable is not None and not encoders_named(recipe):
        setting.on_row({"kind": "note", "text": f"no scores during training: {unreachable}"})
        return None
    if problem or unreachable:
        raise UserError(problem or unreachable)
    return InTrainingEvaluation(components, setting, settings, plan, live, subject, encoders)


class InTrainingEvaluation:
    """Scores the model of a run, any time. Rank 0 holds the encoders."""

    def __init__(
        self,
        components: Components,
        setting: ScoringSetup,
        settings: EvaluationSettings,
        plan: EvaluationPlan,
        model: EvaluatedModel,
        subject: Subject | None,
        encoders: SubjectEncoder | None,
    ) -> None:
        self._components, self._settings, self._plan, self._model = components, settings, plan, model
        self._subject, self._encoders = subject, encoders
        self.base = self._score_base(setting)

    def _score_base(self, setting: ScoringSetup) -> StepScores:
        began = time.monotonic()
        base, group = EvaluatedModel(BASE, self._model.base), setting.group
        store = ImageStore(setting.cache / "scores")

        def progress(done: int, total: int) -> None:
            setting.on_row({"kind": "phase", "name": "scoring the base", "done": done, "total": total})

        self._components.unet.to(setting.device)
        with on_device(self._components, setting.device):
            pipe = self._components.pipeline()
            draw(lambda: pipe, self._plan.jobs(base), store, group, progress)
            group.barrier()
            jobs = self._plan.classes[BASE]
            self._classes = [store.read(job) for job in jobs]
            rows = None
            if group.rank == 0:
                losses = known_losses(base, lambda: pipe, self._plan, jobs, store, self._settings)
                images = [[store.read(job) for job in some] for some in self._plan.subject[BASE]]
                scores = self._scores()
                scores.add(base, images, self._classes, self._classes, losses, time.monotonic() - began)
                scores.add_references()
                rows = scores.rows
        evaluation = _reported(0, rows, began, group)
        (ceiling,) = (row["value"] for row in evaluation.rows if row["model"] == REAL and row["metric"] == "dino_i")
        values = {name: value for name, (value, _, _) in evaluation.measured.items()}
        self._references = References(values, ceiling, self._settings.clip)
        return self._with_quality(evaluation)

    def evaluate(self, engine: TrainingEngine, step: int) -> StepScores:
        """Collective. The scores of the model as it is now; a function of its weights alone."""
        began = time.monotonic()
        plan, settings = self._plan, self._settings
        with drawing(self._components, engine) as pipe:
            files = self._draw(pipe, engine.group)
            losses = gathered(
                len(self._classes),
                lambda mine: prior_losses(
                    pipe,
                    self._classes,
                    plan.class_texts,
                    FIRST_SEED[settings.split],
                    settings.draws,
                    mine,
                    plan.max_token_length,
                ).tolist(),
                engine.group,
            )
        rows = None
        if engine.group.rank == 0:
            images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
            count, prompts = len(images) - len(self._classes), len(plan.texts)
            scores = self._scores()
            scores.add(
                replace(self._model, trained=step),
                [images[place:count:prompts] for place in range(prompts)],  # they were drawn seed by seed
                images[count:],
                self._classes,
                np.array(losses),
                time.monotonic() - began,
            )
            rows = scores.rows
        return self._with_quality(_reported(step, rows, began, engine.group))

    def _draw(self, pipe: Any, group: Collectives) -> list[bytes]:
        """Every image as PNG. Batches have the make-up that `evaluate` gives them, whatever the number of ranks."""
        jobs, size = self._plan.jobs(self._model), self._settings.drawing.batch_size
        batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]

        def work(mine: list[int]) -> list[list[bytes]]:
            return [
                [
                    png_bytes(image)
                    for image in generate(
                        pipe,
                        [job.prompt for job in batches[i]],
                        seeds=[job.seed for job in batches[i]],
                        num_inference_steps=self._settings.drawing.num_inference_steps,
                        guidance_scale=self._settings.drawing.guidance_scale,
                        height=self._settings.drawing.height,
                        width=self._settings.drawing.width,
                        batch_size=size,
                        max_token_length=self._plan.max_token_length,
                    )
                ]
                for i in mine
            ]

        return [image for batch in gathered(len(batches), work, group) for image in batch]

    def _scores(self) -> ScoreTable:
        assert self._subject is not None and self._encoders is not None
        return ScoreTable(self._subject, self._settings.split, self._settings.resamples, self._encoders)

    def _with_quality(self, evaluation: StepScores) -> StepScores:
        value, low, high = quality(evaluation.measured, self._references)
        row = {**next(row for row in evaluation.rows if row["metric"] == "dino_i"), "metric": "quality"}
        row |= {"value": value, "low": low, "high": high, "encoder": None, "preprocessing": None}
        return replace(evaluation, rows=[*evaluation.rows, row])


def _reported(step: int, rows: list[dict[str, Any]] | None, began: float, group: Collectives) -> StepScores:
    """Collective. What rank 0 found, on every rank: all must decide alike."""
    found, seconds = group.gather((rows, time.monotonic() - began))[0]
    assert found is not None
    return StepScores(step, found, seconds)
