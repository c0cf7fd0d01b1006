"""What a search holds back: trials are scored by one half of photos and prompts, the winner in the end by the other."""

from __future__ import annotations

from dataclasses import dataclass

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.search_space import Space
from sdxl_ray.data.dataset import scan, split
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.prompts import Prompts, default_prompts, load_prompts
from sdxl_ray.evaluation.scores import LEAST_PHOTOS
from sdxl_ray.evaluation.subject import Photo, halves, load_photos, photos_of
from sdxl_ray.training.in_training_evaluation import scoring_prompts

#: Said where too few photos are held out to be divided.
SAME_PHOTOS = (
    "final differs from tune by prompts and seeds, not by photos: hold out 4 (data.holdout or data.validation), or "
    "give final.photos"
)


def scored(space: Space, recipe: Recipe) -> Recipe:
    """The recipe of trials: scored on the tune split, by its half of the photos, or not at all as the space says."""
    if not space.scored:
        return override(recipe, {"evaluation.scores": "never"})
    return override(recipe, {"evaluation.scores": "always", "evaluation.split": "tune"})


def judged(space: Space, recipe: Recipe) -> bool:
    """Whether winner and default can be compared by images: of a subject whose class is known."""
    return space.scored and recipe.data.known_class is not None and recipe.data.subject is not None


@dataclass(frozen=True)
class FinalPhotos:
    """The photos of the final split. apart: no trial is scored by any of them."""

    photos: tuple[Photo, ...]
    apart: bool

    @property
    def split(self) -> str:
        """What the verdict calls it."""
        same = " of prompts and seeds (its photos are those that trials were scored by)"
        return "the final split" + ("" if self.apart else same)


def final_photos(space: Space, recipe: Recipe) -> FinalPhotos:
    """Those of `final.photos`, else the half of the held-out ones that trials do not see; all where that is too few.

    Raises UserError where trials are scored by one of `final.photos`.
    """
    tune, rest = (photos_of(half) for half in halves(split(scan(recipe.data), recipe.data)[1]))
    seen = {photo.pixels for photo in tune}
    if space.final.photos is None:
        unseen = tuple(photo for photo in rest if photo.pixels not in seen)
        return FinalPhotos(unseen, True) if len(unseen) >= LEAST_PHOTOS else FinalPhotos(rest, False)
    given = load_photos(space.final.photos, "final.photos")
    if known := [photo.name for photo in given if photo.pixels in seen]:
        raise UserError(
            f"final.photos: trials are scored by {known[0]!r} too, and the winner is chosen by it: "
            "give others, or leave final.photos out"
        )
    return FinalPhotos(given, True)


def final_prompts(space: Space, recipe: Recipe) -> Prompts:
    """The lists of `final.prompts`, else those of the base and class.

    Raises UserError for a list that cannot be read, or with a prompt that trials are scored by.
    """
    named = space.final.prompts or default_prompts(recipe.base.id, str(recipe.data.known_class))
    lists = load_prompts(named)
    seen = scoring_prompts(scored(space, recipe)).of("tune")
    if known := [prompt for prompt in lists.of("final") if prompt in seen]:
        raise UserError(
            f"final.prompts: trials are scored by {known[0]!r} too, and the winner is chosen by it: leave it out of "
            f"{named!r}, or leave final.prompts out"
        )
    return lists
