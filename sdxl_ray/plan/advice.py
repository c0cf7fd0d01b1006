"""Which of LoRA, DreamBooth and DreamBooth + LoRA for these images and this hardware, with reasons.

The rules come from the papers (DreamBooth arXiv 2208.12242: 3-5 photos of a subject need its class beside them; LoRA
arXiv 2106.09685: far less memory, a small file) and from what fits; they are rules of thumb and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.base_lineage import of_embedded_base
from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.display.units import bytes_text
from sdxl_ray.errors import UserError

RECIPES = ("lora", "dreambooth_lora", "dreambooth")
_NAMES = {"lora": "LoRA", "dreambooth_lora": "DreamBooth + LoRA", "dreambooth": "DreamBooth"}

#: Below this many photos, any method learns the photo rather than the subject.
FEW = 3
#: From here on images and captions are enough for every weight to move without a class to hold on to.
MANY = 1000


@dataclass(frozen=True)
class MethodPlan:
    """One method as its shipped recipe has it, on this device. workers: what it was counted with."""

    recipe: str
    needed_bytes: int
    limit_bytes: int
    workers: int

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.limit_bytes

    def __str__(self) -> str:
        verdict = "fits" if self.fits else "does not fit"
        return f"{_NAMES[self.recipe]} needs {bytes_text(self.needed_bytes)} on each of {self.workers}: {verdict}"


@dataclass(frozen=True)
class Advice:
    """The method and the shipped recipe to use, why, and how each of the three stands on this device."""

    method: str
    recipe: str
    reasons: tuple[str, ...]
    choices: tuple[MethodPlan, ...]

    def __str__(self) -> str:
        return f"{self.method} (recipe {self.recipe}): " + "; ".join(self.reasons)


def advise(
    recipe: Recipe, images: int | None, workers: int, needed: Callable[[Recipe, int], int], limit: Callable[[int], int]
) -> Advice:
    """Advice for a recipe's data. `needed(recipe, workers)` and `limit(workers)`: bytes a worker needs and may have."""
    prefix = "tiny_" if of_embedded_base(recipe.base.id) else ""
    choices: list[MethodPlan] = []
    for name in RECIPES:
        try:
            candidate = override(recipe_files.load(prefix + name), _same_base(recipe))
            count = 1 if recipe.parallel.engine == "local" else workers
            choices.append(MethodPlan(name, needed(candidate, count), limit(count), count))
        except UserError:
            continue  # a recipe that this base or device cannot have at all (a precision, a resolution)
    fits = {choice.recipe: choice.fits for choice in choices}
    name, reasons = _rule(recipe, images, fits)
    return Advice(_NAMES[name], prefix + name, tuple(reasons), tuple(choices))


def _same_base(recipe: Recipe) -> dict[str, object]:
    return {"base": recipe.base.model_dump(mode="json"), "data.resolution": recipe.data.resolution}


def _rule(recipe: Recipe, images: int | None, fits: dict[str, bool]) -> tuple[str, list[str]]:
    data = recipe.data
    subject = data.subject is not None or data.class_name is not None or data.prior is not None
    known = "images (how many is not known)" if images is None else f"{images} images"
    if images is not None and images >= MANY:
        if fits.get("dreambooth"):
            return "dreambooth", [f"{known} are enough for every weight to move", "full tuning fits this hardware"]
        return "lora", [f"{known} would feed full tuning, but it does not fit this hardware", "adapters do"]
    if not subject:
        why = [f"{known} and no subject or class is named: captions or a style, which adapters learn well"]
        return "lora", [*why, "there is no class that a prior could preserve"]
    reasons = [f"{known} of one subject"]
    if images is not None and images < FEW:
        reasons.append(f"under {FEW} photos every method copies the photo: add angles and backgrounds")
    if data.class_name is None and data.prior is None:
        reasons.append("name its class (data.class_name=dog) so that class images can keep it from forgetting")
        return "lora", reasons
    reasons.append("class images keep the class from turning into the subject")
    if not fits.get("dreambooth_lora", True):
        return "lora", [*reasons, "but drawing class images does not fit this hardware, plain adapters need least"]
    if fits.get("dreambooth"):
        reasons.append("every weight would fit too: take dreambooth where the likeness of adapters is not enough")
    else:
        reasons.append("moving every weight does not fit this hardware")
    return "dreambooth_lora", [*reasons, "adapters stay a small file beside the base"]
