"""What the images and captions of a run say before it starts: errors where it cannot be meant, notes where it may be.

`require_sound` and `input_notes` see the images as they were scanned; what was not read is listed by `core.unused`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_ray.config.notes import recipe_notes
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.validation import placeholder, says
from sdxl_ray.data.buckets import Buckets, cover
from sdxl_ray.data.image_sources import is_subject, source_path
from sdxl_ray.data.unused_files import Use, unused
from sdxl_ray.errors import UserError
from sdxl_ray.models.base_model_files import BaseFiles

if TYPE_CHECKING:
    from sdxl_ray.training.trainer import Splits

#: Below this share of its area that the crop keeps, and above this enlargement, an image is named.
LEAST_KEPT, MOST_ENLARGED = 0.5, 2.0
_NAMED = 3


def require_sound(recipe: Recipe, images: Splits) -> None:
    """Raise UserError for captions with another trainer's placeholder, and class images that show the subject."""
    shown = (*images.train, *images.held_out)
    found = [(image, held) for image in shown if (held := placeholder(image.caption, recipe.data.subject))]
    if found:
        image, held = found[0]
        more = f", as in {len(found) - 1} more" if found[1:] else ""
        words = repr(recipe.data.subject) if recipe.data.subject else "the words themselves"
        raise UserError(
            f"the caption of {Path(image.source).name!r} ({image.caption!r}) has the placeholder {held}{more}, which "
            f"nothing replaces: write {words} there"
        )
    own = {image.key: image for image in shown}
    same = [image for image in images.given_class if image.key in own]
    if same:
        more = f" ({len(same)} of {len(images.given_class)} are such)" if same[1:] else ""
        raise UserError(
            f"class image {Path(same[0].source).name!r} is the subject's own photo {own[same[0].key].source!r}{more}: "
            "give other members of the class in data.prior.images, or leave it out, and the base draws them"
        )


def run_notes(recipe: Recipe, images: Splits, files: BaseFiles) -> list[str]:
    """Every note of a run, one line each; the images are those of `recipe`, as they were scanned."""
    return [*recipe_notes(recipe), *unread_notes(recipe), *scanned_notes(recipe, images, files)]


def scanned_notes(recipe: Recipe, images: Splits, files: BaseFiles) -> list[str]:
    """What the images and captions themselves say, held against the base and its tokenizers."""
    from sdxl_ray.training.preflight import base_resolution  # a plan needs `unread_notes` without any framework
    from sdxl_ray.training.truncation_notes import training_notes

    captions = [image.caption for one_set in (images.train, images.held_out) for image in one_set]
    return [
        *input_notes(recipe, images, base_resolution(recipe, files)),
        *training_notes(recipe, files, captions),
    ]


def unread_notes(recipe: Recipe) -> list[str]:
    """What lies in `data.images`, `data.validation` and `data.prior.images` and is not read."""
    data = recipe.data
    given = data.prior.images if data.prior is not None else None
    sources: list[tuple[str, str | None, Use]] = [
        ("data.images", data.images, data.captions),
        ("data.validation", data.validation, data.captions),
        ("data.prior.images", given, "class"),
    ]
    folders = {where: source_path(where).resolve() for _, where, _ in sources if where}
    notes = []
    for setting, where, use in sources:
        if where is None:
            continue
        elsewhere = frozenset(folder for other, folder in folders.items() if other != where)
        column = data.caption_column if use != "class" else None
        notes += unused(where, setting, use, recursive=data.recursive, column=column, elsewhere=elsewhere)
    if data.recursive and folders and all(is_subject(where) or folder.is_file() for where, folder in folders.items()):
        notes.append("data.recursive=true is not used: no source is a folder of your own")
    return notes


def input_notes(recipe: Recipe, images: Splits, resolution: int) -> list[str]:
    """What the scanned images and their captions say. resolution: pixels of the square's side."""
    return [*_words(recipe, images), *_numbers(recipe, images), *_shapes(recipe, images, resolution)]


def _words(recipe: Recipe, images: Splits) -> Iterator[str]:
    data, scanned = recipe.data, (*images.train, *images.held_out)
    first = scanned[0]
    if data.subject is not None and not any(says(image.caption, data.subject) for image in scanned):
        yield (
            f"data.subject={data.subject!r} is in none of the {len(scanned)} captions ({Path(first.source).name}: "
            f"{first.caption!r}), so no prompt can ask for it: write it into them, or set data.captions=prompt"
        )
    if data.prompt is not None and not any(image.caption == data.prompt.strip() for image in scanned):
        yield f"data.prompt={data.prompt!r} is the caption of no image: each of the {len(scanned)} has its own"


def _numbers(recipe: Recipe, images: Splits) -> Iterator[str]:
    batch, count = recipe.optim.batch_size, len(images.train)
    if batch > count:
        yield f"optim.batch_size={batch} is more than the {count} training images: a step sees some of them twice"


def _shapes(recipe: Recipe, images: Splits, resolution: int) -> Iterator[str]:
    buckets = Buckets(resolution, recipe.data.buckets)
    cut, enlarged = dict[str, tuple[float, str]](), dict[str, tuple[float, str]]()
    scanned = (*images.train, *images.held_out, *images.given_class)
    for image in scanned:
        bucket = buckets.bucket(image.width, image.height)
        height, width = cover(image.width, image.height, bucket)
        kept, factor = bucket[0] * bucket[1] / (height * width), width / image.width
        size = f"{Path(image.source).name} ({image.width} x {image.height}"
        if kept < LEAST_KEPT:
            cut[image.key] = kept, f"{size}, {kept:.0%} kept)"
        if factor > MOST_ENLARGED:
            enlarged[image.key] = -factor, f"{size}, {factor:.3g} times)"
    for found, what in (
        (cut, "lose more than half of their area to the crop"),
        (enlarged, f"are enlarged more than {MOST_ENLARGED:g} times to {resolution} px"),
    ):
        if found:
            worst = [text for _, text in sorted(found.values())]
            more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
            yield f"{len(found)} of {len(scanned)} images {what}: {', '.join(worst[:_NAMED])}{more}"
