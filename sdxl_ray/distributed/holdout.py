"""A search's held-out photos in two parts: trials are scored by one, winner and default in the end by the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdxl_ray.artifact import Artifact
from sdxl_ray.config import Recipe, override
from sdxl_ray.core.quality.drawing import save_png
from sdxl_ray.core.quality.scores import LEAST_PHOTOS
from sdxl_ray.core.quality.subject import Photo, held_out_photos, load_photos
from sdxl_ray.space import Space

_FOLDER = "photos"


def scored(space: Space, recipe: Recipe) -> Recipe:
    """The recipe with scores on the tune split, or with none where the space asks for none."""
    if not space.scored:
        return override(recipe, {"evaluation.scores": "never"})
    return override(recipe, {"evaluation.scores": "always", "evaluation.split": "tune"})


def trial_recipe(space: Space, recipe: Recipe, home: Path, on_row: Callable[[dict[str, Any]], None]) -> Recipe:
    """The recipe that trials start from: scored on the tune split, by the photos of `<home>/photos/tune`.

    Photos are divided where `data.validation` names enough of them and `final.photos` names no others.
    """
    if not space.scored:
        return scored(space, recipe)
    changes: dict[str, Any] = {}
    if space.final.photos is None and recipe.data.validation is not None:
        photos = load_photos(recipe.data.validation, "data.validation")
        if len(photos) >= 2 * LEAST_PHOTOS:
            changes["data.validation"] = str(divided(photos, home / _FOLDER)[0])
    if space.final.photos is None and "data.validation" not in changes:
        text = "final differs from tune by prompts and seeds; by photos too with 4 in data.validation, or final.photos"
        on_row({"kind": "note", "text": text})
    return override(scored(space, recipe), changes)


def final_photos(space: Space, home: Path, artifact: Artifact) -> tuple[Photo, ...]:
    """The photos of the final split."""
    if space.final.photos is not None:
        return load_photos(space.final.photos, "final.photos")
    kept = home / _FOLDER / "final"
    return load_photos(str(kept), "final.photos") if kept.is_dir() else held_out_photos(artifact)


def divided(photos: Sequence[Photo], home: Path) -> tuple[Path, Path]:
    """Photos in two folders below `home`: those that choose, and as many or one more that the chosen is judged by."""
    ordered = sorted(photos, key=lambda photo: photo.key)
    return _keep(home / "tune", ordered[1::2]), _keep(home / "final", ordered[::2])


def _keep(folder: Path, photos: Sequence[Photo]) -> Path:
    for number, photo in enumerate(photos):
        path = folder / f"{number}.png"
        if not path.is_file():  # other bytes would be other photos to the runs that go on
            save_png(photo.picture, path, {"photo": photo.name})
    return folder
