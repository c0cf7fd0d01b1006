"""`sdxl-ray evaluate`: how well models draw a subject, how much of the base they kept, with intervals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdxl_ray.cli.arguments import (
    AsJson,
    BaseId,
    TokenLength,
    libraries_on_stderr,
    make_folder,
    print_json,
    read_base,
    read_token_length,
)
from sdxl_ray.errors import UserError
from sdxl_ray.interrupts import keeping
from sdxl_ray.paths import local_folder

if TYPE_CHECKING:
    from sdxl_ray.config.recipe import Recipe
    from sdxl_ray.evaluation.evaluated_models import EvaluatedModel
    from sdxl_ray.evaluation.prompts import Prompts, Split
    from sdxl_ray.evaluation.runner import EvaluationResult, EvaluationSettings
    from sdxl_ray.evaluation.subject import Subject
    from sdxl_ray.io.artifact import Artifact

EXAMPLES = (
    "sdxl-ray evaluate base runs/dog/artifact --subject photos/dog/held_out --class-name dog",
    "sdxl-ray evaluate base lora=runs/a/artifact full=runs/b/artifact --seeds 8 --out scores",
    "sdxl-ray evaluate base --subject subject:robot/held_out --class-name robot",
    "sdxl-ray evaluate base runs/dog/artifact --workers 2",
)
_SPLITS: tuple[Split, ...] = ("final", "tune", "validation")


def run(
    sources: Annotated[
        list[str], typer.Argument(metavar="[NAME=]ARTIFACT|base...", help="artifact folders of runs, or the word base")
    ],
    *,
    subject: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="held-out photos, or subject:NAME/held_out; default: the artifact's own"),
    ] = None,
    other: Annotated[
        str | None, typer.Option(metavar="DIR", help="photos of another subject of the class, as a reference")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option(metavar="CLASS", help="what the subject is: dog; default: the artifact's recipe's")
    ] = None,
    called: Annotated[
        str | None, typer.Option(metavar="WORDS", help="the subject in prompts: 'sks dog'; default: the recipe's")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="LIST", help="shipped list, .yaml or .txt; default: by base and class")
    ] = None,
    split: Annotated[str, typer.Option(help="list and seeds: final, tune or validation")] = "final",
    out: Annotated[
        Path, typer.Option(parser=local_folder, metavar="DIR", help="folder of records, images and grid")
    ] = Path("evaluation"),
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="denoising steps; default: the recipe's")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, max=100, help="classifier-free guidance; default: the recipe's")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="images per prompt")] = 4,
    class_images: Annotated[int, typer.Option(min=2, max=10_000, help="images of the plain class")] = 16,
    size: Annotated[int | None, typer.Option(min=8, max=4096, help="pixels; default: the base's own")] = None,
    identity: Annotated[
        str | None, typer.Option(metavar="ENCODER", help="for dino_i, pres, div: name, folder or hub id@commit")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="ENCODER", help="for clip_i, clip_t, class_kid: name, folder or hub id@commit")
    ] = None,
    max_token_length: TokenLength = None,
    base: BaseId = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="images drawn at once")] = 8,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Ray workers that draw; default: this process, or all of --address"),
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster: auto or host:port")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16; auto: bf16 on a GPU, else fp32")] = "auto",
    json: AsJson = False,
) -> None:
    """Score what models learnt and forgot, by held-out photos."""
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise UserError(f"--precision {precision!r}: choose from auto, fp32, bf16, fp16")
    use = next((use for use in _SPLITS if use == split), None)
    if use is None:
        raise UserError(f"--split {split!r}: choose from {', '.join(_SPLITS)}")
    if size is not None and size % 8:
        raise UserError(f"--size {size}: images have multiples of 8 pixels, try {round(size / 8) * 8}")
    length = read_token_length(max_token_length)
    named = _named(sources)  # what is quickly found wrong comes before the libraries are loaded
    artifacts = _open(named)
    recipe = _recipe(artifacts, base)
    if class_name is None:
        _require_same_class(artifacts)
    what = class_name or recipe.data.known_class
    if what is None:
        raise UserError("what the subject is cannot be told: give --class-name, for example --class-name dog")
    if prompts is not None and prompts.endswith((".txt", ".yaml", ".yml")) and not local_folder(prompts).is_file():
        raise UserError(f"--prompts {prompts!r}: no such file")
    make_folder(out, "--out")

    from sdxl_ray.display.progress import Progress

    with libraries_on_stderr(), Progress(sys.stderr) as progress, _keeping(out):
        progress.row({"kind": "phase", "name": "loading the libraries"})

        from sdxl_ray.config.notes import report_notes
        from sdxl_ray.data.unused_files import unused
        from sdxl_ray.evaluation.defaults import settings_of
        from sdxl_ray.evaluation.prompts import default_prompts, load_prompts
        from sdxl_ray.evaluation.runner import evaluate
        from sdxl_ray.io.records import Recorder

        lists = load_prompts(prompts or default_prompts(recipe.base.id, what))
        models = _models(named, artifacts, recipe, base, called)
        settings = settings_of(
            recipe,
            precision=precision,
            steps=steps,
            guidance=guidance,
            size=size,
            batch=batch,
            identity=identity,
            clip=clip,
            max_token_length=length,
        )
        settings = replace(settings, split=use, seeds=seeds, class_images=class_images)
        for setting, where in (("--subject", subject), ("--other", other)):
            report_notes(unused(where, setting, "photos") if where is not None else [], progress.row)
        judged = _subject(subject, other, what, artifacts)
        _advise(recipe, lists, use, what, progress.row)
        if workers is not None or address is not None:
            _draw(models, judged, lists, settings, out, workers, address, progress.row)
        found = evaluate(models, judged, lists, settings, home=out, on_row=progress.row)
        assert found is not None  # one process is rank 0
        with Recorder(out / "records") as recorder:
            found.record(recorder)
        sheet = _grid(found, out)
    if json:
        print_json({"subject": judged.name, "class": what, "split": split, "scores": found.scores,
                    "differences": found.differences, "absent": found.absent, "images": len(found.images),
                    "records": str(out / "records"), "grid": str(sheet)})  # fmt: skip
        return
    from sdxl_ray.cli.evaluation_text import describe

    typer.echo(describe(found))
    typer.echo(f"\nrecords   {out / 'records'}\nimages    {sheet}")


def _keeping(out: Path) -> AbstractContextManager[None]:
    return keeping(lambda: f"{out} keeps the images that are finished; the same command makes the others")


def _draw(
    models: list[EvaluatedModel],
    judged: Subject,
    lists: Prompts,
    settings: EvaluationSettings,
    out: Path,
    workers: int | None,
    address: str | None,
    on_row: Any,
) -> None:
    """Draw on a cluster what `out` lacks."""
    from sdxl_ray.distributed.cluster import connected
    from sdxl_ray.distributed.generation import capacity, draw_on_workers

    with connected(address, workers or 1):
        draw_on_workers(models, judged, lists, settings, home=out, workers=workers or capacity(), on_row=on_row)


def _named(sources: Sequence[str]) -> dict[str, str]:
    """Name -> source; an artifact without one is called after its run folder. Raises UserError for a name twice."""
    named: dict[str, str] = {}
    for source in sources:
        name, equals, path = source.partition("=")
        if not equals or Path(source).exists():
            path = source
            store = Path(source).absolute()
            name = source if source == "base" else store.parent.name if store.name == "artifact" else store.name
        if name in named:
            raise UserError(f"two models are called {name!r}: write NAME=ARTIFACT for one of them")
        named[name] = path
    return named


def _open(named: dict[str, str]) -> dict[str, Artifact]:
    """Every artifact, verified. Raises UserError for one that was changed since it was written."""
    from sdxl_ray.io.artifact import Artifact

    return {name: Artifact.open(path) for name, path in named.items() if path != "base"}


def _recipe(artifacts: dict[str, Artifact], base: str | None) -> Recipe:
    """The first artifact's recipe, whose settings hold for all; else the shipped LoRA recipe of the base."""
    from sdxl_ray.config import recipe as recipe_files
    from sdxl_ray.config.schema import Base

    of = read_base(base) if base is not None else None
    for artifact in artifacts.values():
        recipe = recipe_files.parse_recorded(artifact.manifest.recipe, f"{artifact.folder}: recipe")
        return recipe if of is None else recipe.model_copy(update={"base": of})
    of = of or Base()
    return recipe_files.load("tiny_lora" if of.id == "tiny" else "lora").model_copy(update={"base": of})


def _models(
    named: dict[str, str], artifacts: dict[str, Artifact], recipe: Recipe, base: str | None, called: str | None
) -> list[EvaluatedModel]:
    from sdxl_ray.config import recipe as recipe_files
    from sdxl_ray.evaluation.evaluated_models import EvaluatedModel

    models = []
    for name, path in named.items():
        if name not in artifacts:
            models.append(EvaluatedModel(name, recipe.base))
            continue
        own = recipe_files.parse_recorded(artifacts[name].manifest.recipe, f"{path}: recipe")
        words = called or own.data.subject
        if not words:
            raise UserError(f"artifact {path!r} names no subject: say what prompts call it, --called 'sks dog'")
        models.append(EvaluatedModel(name, recipe.base if base is not None else own.base, artifacts[name], words))
    return models


def _subject(where: str | None, other: str | None, class_name: str, artifacts: dict[str, Artifact]) -> Subject:
    from sdxl_ray.evaluation.subject import Subject, held_out_photos, load_photos, require_another, subject_name

    if where is not None:
        photos, name = load_photos(where), subject_name(where)
    elif artifacts:
        first = next(iter(artifacts.values()))
        photos, name = held_out_photos(first), subject_name(str(first.manifest.recipe["data"]["images"]))
        _require_same_photos(artifacts, {photo.pixels for photo in photos})
    else:
        raise UserError("nothing tells the subject: give a folder of photos, --subject DIR")
    others = load_photos(other, "--other") if other is not None else ()
    require_another(others, photos, "--other")
    return Subject(name, class_name, photos, others)


def _require_same_photos(artifacts: dict[str, Artifact], pixels: set[str]) -> None:
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


def _require_same_class(artifacts: dict[str, Artifact]) -> None:
    """Raise UserError when artifacts are of different classes, whose images no one prompt asks for."""
    from sdxl_ray.config import recipe as recipe_files

    classes = {
        recipe_files.parse_recorded(artifact.manifest.recipe, f"{artifact.folder}: recipe").data.known_class: name
        for name, artifact in artifacts.items()
    }
    if len(classes) > 1:
        reported = ", ".join(f"{name!r} of class {what!r}" for what, name in classes.items())
        raise UserError(
            f"the artifacts are of different classes ({reported}): evaluate them apart, or give --class-name"
        )


def _advise(recipe: Recipe, lists: Prompts, split: Split, class_name: str, on_row: Any) -> None:
    """On the embedded base, name the words of the prompts that it was never taught."""
    from sdxl_ray.evaluation.prompts import fill
    from sdxl_ray.tiny.unknown_words import unknown_words

    texts = [fill(prompt, class_name, article=True) for prompt in lists.of(split)]
    unknown = unknown_words(texts) if recipe.base.id == "tiny" else []
    if unknown:
        on_row({"kind": "note", "text": f"note: the embedded base does not know {', '.join(map(repr, unknown))}"})


def _grid(found: EvaluationResult, out: Path) -> Path:
    """Rows are prompts at the first seed, columns models, and one of the photos beside them."""
    from PIL import Image

    from sdxl_ray.data.image_grid import grid

    drawn = [row for row in found.images if row["purpose"] == "subject"]
    models = list(dict.fromkeys(row["model"] for row in drawn))
    seed = drawn[0]["seed"]
    at = {(row["prompt"], row["model"]): out / row["path"] for row in drawn if row["seed"] == seed}
    prompts = list(dict.fromkeys(row["prompt"] for row in drawn))
    rows = [[Image.open(at[prompt, model]) for model in models] for prompt in prompts]
    photos = [Image.open(out / row["path"]) for row in found.images if row["purpose"] == "real"]
    sheet = out / "grid.png"
    beside = [[*row, photos[number % len(photos)]] for number, row in enumerate(rows)]
    grid(beside, prompts, [*models, "a real photo"]).save(sheet)
    return sheet
