"""What to evaluate, as a person says it: artifact folders or `base`, photos, a class. Resolved in two stages.

`open_request` finds quickly what is wrong with the input and loads no framework; `resolve` reads the photos and the
prompts. `sdxl-ray evaluate` and `sdxl_ray.evaluate` both go this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.base_lineage import of_embedded_base
from sdxl_ray.config.notes import report_notes
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import Base, MaxTokenLength
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.prompts import Split
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.rows import OnRow
from sdxl_ray.models.opening import name_of, open_artifact
from sdxl_ray.paths import local_folder

if TYPE_CHECKING:
    from sdxl_ray.evaluation.evaluated_models import EvaluatedModel
    from sdxl_ray.evaluation.prompts import Prompts
    from sdxl_ray.evaluation.runner import EvaluationSettings
    from sdxl_ray.evaluation.subject import Subject

SPLITS: tuple[Split, ...] = ("final", "tune", "validation")


@dataclass(frozen=True)
class EvaluationRequest:
    """Models and conditions. What is None comes from the first artifact's recipe, or from the base.

    sources: artifact folders, `name=folder`, or "base". subject, other: folders of photos. called: the subject in
    prompts. seeds: images per prompt; class_images: of the plain class; size: pixels of a side; batch: images at once.
    """

    sources: Sequence[str]
    subject: str | None = None
    other: str | None = None
    class_name: str | None = None
    called: str | None = None
    prompts: str | None = None
    split: str = "final"
    seeds: int = 4
    class_images: int = 16
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    identity: str | None = None
    clip: str | None = None
    max_token_length: MaxTokenLength | None = None
    base: Base | None = None
    batch: int = 8
    precision: str = "auto"


@dataclass(frozen=True)
class OpenedRequest:
    """A request whose input was found sound. class_name: of the subject; recipe: the one whose settings hold."""

    request: EvaluationRequest
    split: Split
    named: Mapping[str, str]
    artifacts: Mapping[str, Artifact]
    recipe: Recipe
    class_name: str


@dataclass(frozen=True)
class ResolvedRequest:
    """Everything that `runner.evaluate` takes."""

    models: list[EvaluatedModel]
    subject: Subject
    prompts: Prompts
    settings: EvaluationSettings


def open_request(request: EvaluationRequest) -> OpenedRequest:
    """Check a request and open its artifacts. Raises UserError."""
    split = next((split for split in SPLITS if split == request.split), None)
    if split is None:
        raise UserError(f"--split {request.split!r}: choose from {', '.join(SPLITS)}")
    if request.size is not None and request.size % 8:
        near = round(request.size / 8) * 8
        raise UserError(f"--size {request.size}: images have multiples of 8 pixels, try {near}")
    named = _named(request.sources)
    artifacts = {name: open_artifact(path, request.base) for name, path in named.items() if path != "base"}
    recipe = _recipe(artifacts, request.base)
    if request.class_name is None:
        _require_same_class(artifacts)
    class_name = request.class_name or recipe.data.known_class
    if class_name is None:
        raise UserError("the class of the subject is unknown: give --class-name, for example --class-name dog")
    prompts = request.prompts
    if prompts is not None and prompts.endswith((".txt", ".yaml", ".yml")) and not local_folder(prompts).is_file():
        raise UserError(f"--prompts {prompts!r}: no such file")
    return OpenedRequest(request, split, named, artifacts, recipe, class_name)


def resolve(opened: OpenedRequest, on_row: OnRow) -> ResolvedRequest:
    """Read photos and prompts; notes (what lies unread, words that the embedded base was not taught) go to `on_row`."""
    from sdxl_ray.data.unused_files import unused
    from sdxl_ray.evaluation.defaults import settings_of
    from sdxl_ray.evaluation.prompts import default_prompts, load_prompts

    request, recipe = opened.request, opened.recipe
    prompts = load_prompts(request.prompts or default_prompts(recipe.base.id, opened.class_name))
    models = _models(opened)
    settings = settings_of(
        recipe,
        precision=request.precision,
        steps=request.steps,
        guidance=request.guidance,
        size=request.size,
        batch=request.batch,
        identity=request.identity,
        clip=request.clip,
        max_token_length=request.max_token_length,
    )
    settings = replace(settings, split=opened.split, seeds=request.seeds, class_images=request.class_images)
    for setting, where in (("--subject", request.subject), ("--other", request.other)):
        report_notes(unused(where, setting, "photos") if where is not None else [], on_row)
    subject = _subject(opened)
    _report_unknown_words(opened, prompts, on_row)
    return ResolvedRequest(models, subject, prompts, settings)


def _named(sources: Sequence[str]) -> dict[str, str]:
    """Name -> source; an artifact without one is called after its run folder. Raises UserError for a name twice."""
    named: dict[str, str] = {}
    for source in sources:
        name, equals, path = source.partition("=")
        if not equals or Path(source).exists():
            path = source
            name = source if source == "base" else name_of(source)
        if name in named:
            raise UserError(f"two models are called {name!r}: write NAME=ARTIFACT for one of them")
        named[name] = path
    return named


def _own_recipe(artifact: Artifact) -> Recipe:
    return recipe_files.parse_recorded(artifact.manifest.recipe, f"{artifact.folder}: recipe")


def _trained(artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The artifacts whose photos are known: of runs, not of other tools' files."""
    return {name: artifact for name, artifact in artifacts.items() if artifact.manifest.recipe["data"]["images"]}


def _recipe(artifacts: Mapping[str, Artifact], base: Base | None) -> Recipe:
    """The first artifact's recipe, whose settings hold for all; else the shipped LoRA recipe of the base.

    An imported file's recipe says little: one that was trained here goes first.
    """
    for artifact in (_trained(artifacts) or artifacts).values():
        recipe = _own_recipe(artifact)
        return recipe if base is None else recipe.model_copy(update={"base": base})
    base = base or Base()
    return recipe_files.load("tiny_lora" if of_embedded_base(base.id) else "lora").model_copy(update={"base": base})


def _models(opened: OpenedRequest) -> list[EvaluatedModel]:
    from sdxl_ray.evaluation.evaluated_models import EvaluatedModel

    models, request = [], opened.request
    for name, path in opened.named.items():
        if name not in opened.artifacts:
            models.append(EvaluatedModel(name, opened.recipe.base))
            continue
        artifact = opened.artifacts[name]
        own = _own_recipe(artifact)
        words = request.called or own.data.subject
        if not words:
            raise UserError(f"artifact {path!r} names no subject: say what prompts call it, --called 'sks dog'")
        base = opened.recipe.base if request.base is not None else own.base
        models.append(EvaluatedModel(name, base, artifact, words))
    return models


def _subject(opened: OpenedRequest) -> Subject:
    from sdxl_ray.evaluation.subject import Subject, held_out_photos, load_photos, require_another, subject_name

    where, other = opened.request.subject, opened.request.other
    if where is not None:
        photos, name = load_photos(where), subject_name(where)
    elif trained := _trained(opened.artifacts):
        first = next(iter(trained.values()))
        photos, name = held_out_photos(first), subject_name(str(first.manifest.recipe["data"]["images"]))
        _require_same_photos(trained, {photo.pixels for photo in photos})
    else:
        raise UserError("no subject is known: give a folder of photos, --subject DIR")
    others = load_photos(other, "--other") if other is not None else ()
    require_another(others, photos, "--other")
    return Subject(name, opened.class_name, photos, others)


def _require_same_photos(artifacts: Mapping[str, Artifact], pixels: set[str]) -> None:
    """Raise UserError when an artifact of another folder of photos held out others than the first did."""
    from sdxl_ray.evaluation.subject import held_out_photos

    (first, judge), *others = artifacts.items()
    images = judge.manifest.recipe["data"]["images"]
    for name, artifact in others:
        own = artifact.manifest.recipe["data"]["images"]
        if own != images and {photo.pixels for photo in held_out_photos(artifact)} != pixels:
            raise UserError(
                f"{name!r} is of {own!r}, {first!r} of {images!r}, and they held out different photos: evaluate them "
                "apart, or give the photos of all with --subject DIR"
            )


def _require_same_class(artifacts: Mapping[str, Artifact]) -> None:
    """Raise UserError when artifacts are of different classes, whose images no one prompt asks for."""
    classes = {_own_recipe(artifact).data.known_class: name for name, artifact in _trained(artifacts).items()}
    if len(classes) > 1:
        listed = ", ".join(f"{name!r} of class {what!r}" for what, name in classes.items())
        raise UserError(f"the artifacts are of different classes ({listed}): evaluate them apart, or give --class-name")


def _report_unknown_words(opened: OpenedRequest, prompts: Prompts, on_row: OnRow) -> None:
    """On the embedded base, name the words of the prompts that it was never taught."""
    from sdxl_ray.evaluation.prompts import fill
    from sdxl_ray.tiny.unknown_words import unknown_words

    texts = [fill(prompt, opened.class_name, article=True) for prompt in prompts.of(opened.split)]
    unknown = unknown_words(texts) if of_embedded_base(opened.recipe.base.id) else []
    if unknown:
        on_row({"kind": "note", "text": f"note: the embedded base does not know {', '.join(map(repr, unknown))}"})
