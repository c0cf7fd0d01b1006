"""What a recipe says that may be meant but rarely is: settings that change nothing in this run, and unusual values.

`train`, `tune` and `plan` print these once, before anything starts. What can never work is refused by
`sdxl_ray.config.validation`; what depends on the images is in `sdxl_ray.training.input_notes`. A shipped recipe gets
none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sdxl_ray.config.base_lineage import of_embedded_base
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import LoraTuning
from sdxl_ray.config.validation import value_and_default

#: How each of them begins where it is shown.
NOTE = "note: "
#: Usual learning rates, by (kind of tuning, whether the base is the embedded one).
_LR = {
    ("lora", False): (1e-6, 1e-2),
    ("lora", True): (1e-5, 5e-2),
    ("full", False): (1e-8, 2e-5),
    ("full", True): (1e-6, 1e-2),
}
#: Settings of the scores during training.
_SCORES = ("score_prompts", "score_seeds", "class_images", "patience", "identity", "clip")
_MOST_OFFSET = 0.3
_MOST_DROPOUT = 0.5
#: Strength of adapters (alpha / rank) beyond which, up or down, the number is most often a slip.
_MOST_STRENGTH = 64


def recipe_notes(recipe: Recipe, *, search: bool = False) -> list[str]:
    """One line for each. search: the recipe is that of a search, which reads `resources` and holds photos back."""
    return [
        *recipe._notes,
        *_rates(recipe),
        *_lengths(recipe),
        *_data(recipe),
        *_evaluation(recipe),
        *_layout(recipe, search),
    ]


def report_notes(notes: Iterable[str], on_row: Callable[[dict[str, Any]], None]) -> None:
    """Report each note as a row of progress."""
    for text in notes:
        on_row({"kind": "note", "text": f"{NOTE}{text}"})


def _rates(recipe: Recipe) -> Iterator[str]:
    optim, tuning = recipe.optim, recipe.tuning
    if optim.name == "prodigy":
        if optim.lr_scheduler in ("cosine_with_restarts", "piecewise_constant", "polynomial"):
            yield (
                f"optim.lr_scheduler={optim.lr_scheduler}: prodigy estimates its own rate, and its authors advise "
                "constant or cosine"
            )
    else:
        least, most = _LR[tuning.kind, of_embedded_base(recipe.base.id)]
        for path in ("optim.lr", "optim.text_lr"):
            lr = value_and_default(recipe, path)[0]
            if lr is not None and not least <= lr <= most:
                expect = "may diverge or forget the class" if lr > most else "hardly moves a weight"
                yield f"{path}={lr:g} {expect}: {tuning.kind} tuning of this base takes {least:g} to {most:g}"
    if isinstance(tuning, LoraTuning) and tuning.alpha is not None:
        strength = tuning.alpha / (math.sqrt(tuning.rank) if tuning.use_rslora else tuning.rank)
        if not 1 / _MOST_STRENGTH <= strength <= _MOST_STRENGTH:
            yield (
                f"tuning.alpha={tuning.alpha:g} with rank {tuning.rank} is a strength of {strength:g}: "
                "tuning.alpha=null is 1"
            )
    if recipe.objective.noise_offset > _MOST_OFFSET:
        yield f"objective.noise_offset={recipe.objective.noise_offset:g} ruins brightness: 0.02 to 0.1 is usual"


def _lengths(recipe: Recipe) -> Iterator[str]:
    optim, steps = recipe.optim, recipe.optim.steps
    if optim.warmup_steps > steps / 2:
        yield f"optim.warmup_steps={optim.warmup_steps} of {steps} steps: most of the run is warm-up"
    if optim.ema_decay is not None and optim.ema_decay > (reached := (1 + steps) / (10 + steps)):
        yield (
            f"optim.ema_decay={optim.ema_decay:g} is too slow for {steps} steps: the decay grows with the steps and "
            f"ends at {reached:.4g}"
        )
    # A default beyond the end of a short run loses nothing worth a line.
    for path, lost in (
        ("checkpoint.every", "a run that is killed begins again"),
        ("evaluation.every", "the last step is the only one that is evaluated"),
    ):
        every, default = value_and_default(recipe, path)
        if every > steps and every != default:
            yield f"{path}={every} is beyond the last step ({steps}): {lost}"


def _data(recipe: Recipe) -> Iterator[str]:
    data, base = recipe.data, recipe.base
    if base.revision is not None and base.id.endswith(".safetensors"):
        yield f"base.revision={base.revision} is not used: {base.id!r} is a file, which has no commits"
    if data.validation is not None and data.holdout not in (0, value_and_default(recipe, "data.holdout")[1]):
        yield f"data.holdout={data.holdout} is not used: data.validation names the held-out images"
    if data.caption_dropout > _MOST_DROPOUT:
        yield f"data.caption_dropout={data.caption_dropout:g}: most steps see no caption; 0.05 to 0.1 is usual"
    prior, batch = data.prior, recipe.optim.batch_size
    if prior is None:
        return
    if prior.prior_loss_weight == 0:
        yield (
            "data.prior.prior_loss_weight=0: class images cost time and teach nothing; data.prior=null leaves them out"
        )
    wanted = batch * prior.ratio
    if wanted < 0.5:
        yield f"data.prior.ratio={prior.ratio:g} of optim.batch_size={batch} is {wanted:g} class images: 1 is used"
    if prior.num_class_images < round(wanted):
        yield (
            f"data.prior.num_class_images={prior.num_class_images} is less than one batch has ({round(wanted)} class "
            "images): they repeat"
        )
    if data.class_name and prior.prompt and data.class_name.lower() not in prior.prompt.lower():
        yield f"data.prior.prompt={prior.prompt!r} does not name data.class_name={data.class_name!r}"


def _evaluation(recipe: Recipe) -> Iterator[str]:
    asked, data = recipe.evaluation, recipe.data
    if asked.scores == "never" or asked.every == 0:
        changed = [f"evaluation.{name}" for name in _SCORES if _differs(recipe, f"evaluation.{name}")]
        if changed:
            off = "evaluation.every=0" if asked.every == 0 else "evaluation.scores=never"
            yield f"{', '.join(changed)}: not used, nothing is scored during training ({off})"
    if data.validation is None and data.holdout == 0 and _differs(recipe, "evaluation.draws"):
        yield f"evaluation.draws={asked.draws} is not used: no image is held out (data.holdout=0)"


def _layout(recipe: Recipe, search: bool) -> Iterator[str]:
    parallel, data = recipe.parallel, recipe.data
    if parallel.engine == "local":
        names = ["parallel.zero_stage", "resources.max_failures"]
        names += [] if search else ["resources.cpus_per_worker", "resources.gpus_per_worker"]
        if changed := [name for name in names if _differs(recipe, name)]:
            yield f"{', '.join(changed)}: not used by parallel.engine=local, which is this one process"
    images = recipe.optim.batch_size
    images += max(1, math.floor(images * data.prior.ratio + 0.5)) if data.prior else 0
    share = math.ceil(images / parallel.workers[0])
    if parallel.micro_batch is not None and parallel.micro_batch > share:
        yield f"parallel.micro_batch={parallel.micro_batch} is more than a worker's part of a batch ({share} images)"
    if parallel.workers[1] > images:
        yield f"parallel.workers={parallel.workers[1]}: a batch has {images} images, so some workers have none"


def _differs(recipe: Recipe, path: str) -> bool:
    value, default = value_and_default(recipe, path)
    return bool(value != default)
