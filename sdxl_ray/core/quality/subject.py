"""The photos that pictures are judged by, and the proof that none of them was trained on.

A score against training photos rewards copying, so a folder that shares a picture with a model's training set is
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

from sdxl_ray import config
from sdxl_ray.artifact import Artifact
from sdxl_ray.core.dataset import Picture, PictureSet, scan, scan_class, split
from sdxl_ray.core.pictures import open_picture
from sdxl_ray.core.quality.models import Model
from sdxl_ray.core.quality.scores import LEAST_PHOTOS
from sdxl_ray.core.sources import HELD_OUT, Entry, Reader, entries
from sdxl_ray.errors import UserError
from sdxl_ray.paths import images_path


@dataclass(frozen=True)
class Photo:
    """One photo, decoded. key: SHA-256 of the file's bytes; pixels: of what it decodes to."""

    name: str
    picture: Image.Image
    key: str

    @property
    def pixels(self) -> str:
        """SHA-256 of size and RGB values."""
        return _pixels(self.picture)


@dataclass(frozen=True)
class Subject:
    """Who or what is judged: held-out photos, the class's name, and photos of another one of the class, if any."""

    name: str
    class_name: str
    photos: tuple[Photo, ...]
    other: tuple[Photo, ...] = ()


def load_photos(where: str, setting: str = "--subject", *, recursive: bool = False) -> tuple[Photo, ...]:
    """Photos of a folder, a Parquet file or `subject:NAME[/held_out]`, each once.

    Raises UserError: nothing there, or a file that is no usable picture.
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
        raise UserError(f"artifact {str(artifact.folder)!r} tells of no held-out photos: give them with --subject")
    return photos


def kept_photos(artifact: Artifact) -> tuple[Photo, ...]:
    """The same, none where the run held out none."""
    recipe = config.parse_made(artifact.manifest.recipe, f"{artifact.folder}: recipe")
    if recipe.data.validation is not None:
        return load_photos(recipe.data.validation, "data.validation", recursive=recipe.data.recursive)
    rows = _run_pictures(artifact, "held_out") or ()
    return _read([Entry(row.source, "") for row in rows])


def require_unseen(photos: Sequence[Photo], models: Sequence[Model], setting: str = "--subject") -> list[str]:
    """Raise UserError when a photo is among a model's training pictures; else the models that cannot be checked.

    Training pictures are those of the run folder that the artifact lies in, else those that its recipe names, where
    they still are.
    """
    unknown = []
    for model in models:
        if model.artifact is None:
            continue
        trained = training_pictures(model.artifact)
        if trained is None:
            unknown.append(model.name)
            continue
        require_untrained(photos, trained, model.name, setting)
    return unknown


def require_untrained(photos: Sequence[Photo], trained: Iterable[Picture], name: str, setting: str) -> None:
    """Raise UserError when a photo is among the pictures that the model `name` is trained on."""
    keys = {photo.key: photo for photo in photos}
    pixels = {photo.pixels: photo for photo in photos}
    sizes = {photo.picture.size for photo in photos}
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


def photos_of(pictures: PictureSet) -> tuple[Photo, ...]:
    """A run's held-out pictures as photos, each once, in an order of their content."""
    rows = sorted(pictures, key=lambda row: row.key)
    photos = (Photo(Path(row.source).name, pictures.read(row), row.key) for row in rows)
    return tuple({photo.pixels: photo for photo in photos}.values())


def halves(held_out: PictureSet) -> tuple[PictureSet, PictureSet]:
    """(what the trials of a search are scored by, what only its end sees): every second picture, by content.

    Fewer than twice `LEAST_PHOTOS` are not divided: both are all of them.
    """
    keys = sorted({picture.key for picture in held_out})
    if len(keys) < 2 * LEAST_PHOTOS:
        return held_out, held_out
    tune = set(keys[1::2])
    return (
        PictureSet(picture for picture in held_out if picture.key in tune),
        PictureSet(picture for picture in held_out if picture.key not in tune),
    )


def training_pictures(artifact: Artifact) -> tuple[Picture, ...] | None:
    """What an artifact was trained on, class pictures that were given included; None when nothing here tells."""
    rows = _run_pictures(artifact, "train")
    if rows is not None:
        return (*rows, *(_run_pictures(artifact, "given_class") or ()))
    try:
        recipe = config.parse_made(artifact.manifest.recipe, "recipe")
        if recipe.data.images is None:
            return None
        return (*split(scan(recipe.data), recipe.data)[0], *scan_class(recipe.data))
    except UserError:  # the pictures are on another machine
        return None


def _run_pictures(artifact: Artifact, name: str) -> tuple[Picture, ...] | None:
    file = artifact.folder.absolute().parent / "pictures" / f"{name}.parquet"
    try:
        return PictureSet.from_rows(pq.read_table(file).to_pylist()).pictures if file.is_file() else None
    except (pa.ArrowException, OSError, TypeError, ValueError):
        return None


def _read(found: Sequence[Entry]) -> tuple[Photo, ...]:
    reader, photos = Reader(), dict[str, Photo]()
    for entry in found:
        data = reader.read(entry.source)
        name = Path(entry.source).name
        photo = Photo(name, open_picture(data, name), hashlib.sha256(data).hexdigest())
        photos.setdefault(photo.pixels, photo)
    return tuple(photos.values())


def _decoded(row: Picture) -> str:
    try:
        return _pixels(PictureSet([row]).read(row))
    except UserError:  # gone or changed since: its bytes have been compared
        return ""


def _pixels(picture: Image.Image) -> str:
    return hashlib.sha256(repr(picture.size).encode() + picture.convert("RGB").tobytes()).hexdigest()
