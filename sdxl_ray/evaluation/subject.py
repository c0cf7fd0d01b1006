"""The photos that images are judged by, and the proof that none of them was trained on.

A score against training photos rewards copying, so a folder that shares an image with a model's training set is
refused: by the bytes of the file, and by its decoded pixels, so that neither a new name nor a lossless copy hides it.
A lossy copy (another JPEG, another size) is not recognised: such are to be kept apart by who holds photos out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.data.dataset import DatasetImage, ImageSet, scan, scan_class, split
from sdxl_ray.data.image_io import open_image
from sdxl_ray.data.image_sources import HELD_OUT, ImageEntry, Reader, entries
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.evaluated_models import EvaluatedModel
from sdxl_ray.evaluation.scores import LEAST_PHOTOS
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.paths import images_path


@dataclass(frozen=True)
class Photo:
    """One photo, decoded. key: SHA-256 of the file's bytes; pixels: of what it decodes to."""

    name: str
    image: Image.Image
    key: str

    @property
    def pixels(self) -> str:
        """SHA-256 of size and RGB values."""
        return _pixels(self.image)


@dataclass(frozen=True)
class Subject:
    """Who or what is judged: held-out photos, the class's name, and photos of another one of the class, if any."""

    name: str
    class_name: str
    photos: tuple[Photo, ...]
    other: tuple[Photo, ...] = ()


def load_photos(where: str, setting: str = "--subject", *, recursive: bool = False) -> tuple[Photo, ...]:
    """Photos of a folder, a Parquet file or `subject:NAME[/held_out]`, each once.

    Raises UserError: nothing there, or a file that is no usable image.
    """
    try:
        where = images_path(where)
    except ValueError as error:
        raise UserError(f"{setting} {where!r} {error}") from None
    return _read(entries(where, "prompt", "", setting, recursive=recursive))


def subject_name(where: str) -> str:
    """What records call the subject of a folder: `photos/dog/held_out` and `subject:dog/held_out` are "dog"."""
    path = Path(where.removeprefix("subject:"))
    return path.parent.name if path.name == HELD_OUT and path.parent.name else path.stem


def held_out_photos(artifact: Artifact) -> tuple[Photo, ...]:
    """The photos that the artifact's own run held out. Raises UserError when they are not to be found."""
    photos = kept_photos(artifact)
    if not photos:
        raise UserError(f"artifact {str(artifact.folder)!r} names no held-out photos: give them with --subject")
    return photos


def kept_photos(artifact: Artifact) -> tuple[Photo, ...]:
    """The same, none where the run held out none."""
    recipe = recipe_files.parse_recorded(artifact.manifest.recipe, f"{artifact.folder}: recipe")
    if recipe.data.validation is not None:
        return load_photos(recipe.data.validation, "data.validation", recursive=recipe.data.recursive)
    rows = _run_images(artifact, "held_out") or ()
    return _read([ImageEntry(row.source, "") for row in rows])


def require_unseen(photos: Sequence[Photo], models: Sequence[EvaluatedModel], setting: str = "--subject") -> list[str]:
    """Raise UserError when a photo is among a model's training images; else the models that cannot be checked.

    Training images are those of the run folder that the artifact lies in, else those that its recipe names, where
    they still are.
    """
    unknown = []
    for model in models:
        if model.artifact is None:
            continue
        trained = training_images(model.artifact)
        if trained is None:
            unknown.append(model.name)
            continue
        require_untrained(photos, trained, model.name, setting)
    return unknown


def require_untrained(photos: Sequence[Photo], trained: Iterable[DatasetImage], name: str, setting: str) -> None:
    """Raise UserError when a photo is among the images that the model `name` is trained on."""
    keys = {photo.key: photo for photo in photos}
    pixels = {photo.pixels: photo for photo in photos}
    sizes = {photo.image.size for photo in photos}
    for row in trained:
        seen = keys.get(row.key)
        if seen is None and (row.width, row.height) in sizes:
            seen = pixels.get(_decoded(row))
        if seen is not None:
            raise UserError(
                f"{setting}: photo {seen.name!r} is one that {name!r} was trained on ({row.source}), and "
                "would flatter it: give photos that were held out"
            )


def require_another(others: Sequence[Photo], photos: Iterable[Photo], setting: str) -> None:
    """Raise UserError when one of `others`, said to show another subject of the class, is among the subject's own."""
    own = {photo.pixels for photo in photos}
    for photo in others:
        if photo.pixels in own:
            raise UserError(f"{setting}: {photo.name!r} is a photo of the subject too: give another one of the class")


def photos_of(images: ImageSet) -> tuple[Photo, ...]:
    """A run's held-out images as photos, each once, in an order of their content."""
    rows = sorted(images, key=lambda row: row.key)
    photos = (Photo(Path(row.source).name, images.read(row), row.key) for row in rows)
    return tuple({photo.pixels: photo for photo in photos}.values())


def halves(held_out: ImageSet) -> tuple[ImageSet, ImageSet]:
    """(what the trials of a search are scored by, what only its end sees): every second image, by content.

    Fewer than twice `LEAST_PHOTOS` are not divided: both are all of them.
    """
    keys = sorted({image.key for image in held_out})
    if len(keys) < 2 * LEAST_PHOTOS:
        return held_out, held_out
    tune = set(keys[1::2])
    return (
        ImageSet(image for image in held_out if image.key in tune),
        ImageSet(image for image in held_out if image.key not in tune),
    )


def training_images(artifact: Artifact) -> tuple[DatasetImage, ...] | None:
    """What an artifact was trained on, class images that were given included; None when that is not recorded."""
    rows = _run_images(artifact, "train")
    if rows is not None:
        return (*rows, *(_run_images(artifact, "given_class") or ()))
    try:
        recipe = recipe_files.parse_recorded(artifact.manifest.recipe, "recipe")
        if recipe.data.images is None:
            return None
        return (*split(scan(recipe.data), recipe.data)[0], *scan_class(recipe.data))
    except UserError:  # the images are on another machine
        return None


def _run_images(artifact: Artifact, name: str) -> tuple[DatasetImage, ...] | None:
    file = artifact.folder.absolute().parent / "pictures" / f"{name}.parquet"
    try:
        return ImageSet.from_rows(pq.read_table(file).to_pylist()).images if file.is_file() else None
    except (pa.ArrowException, OSError, TypeError, ValueError):
        return None


def _read(found: Sequence[ImageEntry]) -> tuple[Photo, ...]:
    reader, photos = Reader(), dict[str, Photo]()
    for entry in found:
        data = reader.read(entry.source)
        name = Path(entry.source).name
        photo = Photo(name, open_image(data, name), hashlib.sha256(data).hexdigest())
        photos.setdefault(photo.pixels, photo)
    return tuple(photos.values())


def _decoded(row: DatasetImage) -> str:
    try:
        return _pixels(ImageSet([row]).read(row))
    except UserError:  # gone or changed since: its bytes have been compared
        return ""


def _pixels(image: Image.Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()
