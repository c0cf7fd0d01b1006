"""The accuracy of an experiment's arms: every arm and the base, judged by the subject's held-out photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdxl_ray.artifact import Artifact
from sdxl_ray.config import Recipe
from sdxl_ray.core.quality.defaults import settings_of
from sdxl_ray.core.quality.evaluate import Evaluation, evaluate
from sdxl_ray.core.quality.models import BASE, Model
from sdxl_ray.core.quality.prompts import default_prompts, fill, load_prompts
from sdxl_ray.core.quality.subject import Subject, held_out_photos, subject_name
from sdxl_ray.experiment import Experiment
from sdxl_ray.records import Recorder
from sdxl_ray.report.source import Drawing

OnRow = Callable[[dict[str, Any]], None]


def judge(
    experiment: Experiment, recipes: dict[str, Recipe], artifacts: dict[str, Artifact], home: Path, on_row: OnRow
) -> tuple[Evaluation, Drawing] | None:
    """Score the base and every arm into `home`; None, with a note, for a set that has no subject.

    Pictures that are there already are not drawn again.
    """
    first = next(iter(recipes.values()))
    class_name, subject = first.data.known_class, first.data.subject
    if class_name is None or subject is None:
        on_row({"kind": "note", "text": "no accuracy: the arms have no subject, only captions"})
        return None
    photos = held_out_photos(next(iter(artifacts.values())))
    judged = Subject(subject_name(str(first.data.images)), class_name, photos)
    lists = load_prompts(experiment.prompts or default_prompts(first.base.id, class_name))
    settings = replace(settings_of(first), seeds=experiment.seeds, class_pictures=experiment.class_pictures)
    models = [Model(BASE, first.base)]
    models += [Model(arm, recipe.base, artifacts[arm], recipe.data.subject) for arm, recipe in recipes.items()]
    found = evaluate(models, judged, lists, settings, home=home, on_row=on_row)
    assert found is not None  # one process is rank 0
    with Recorder(home / "records") as recorder:
        found.record(recorder)
    drawing = Drawing(
        seeds=list(settings.seeds_of(settings.seeds)),
        steps=settings.drawing.num_inference_steps,
        guidance=settings.drawing.guidance_scale,
        prompts=[fill(prompt, class_name, article=True) for prompt in lists.of(settings.split)],
    )
    return found, drawing
