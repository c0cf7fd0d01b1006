"""The end of a run: which step's weights are its result, and the artifact they are written to."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import torch

from sdxl_ray.config.schema import LoraTuning
from sdxl_ray.errors import RunError
from sdxl_ray.formats.metadata import checkpoint_metadata
from sdxl_ray.formats.single_file import write_single_file
from sdxl_ray.io.artifact import CARD_IMAGE, SINGLE_FILE, write_manifest
from sdxl_ray.io.atomic import publish
from sdxl_ray.io.model_card import write_card
from sdxl_ray.models.adapters import TUNINGS
from sdxl_ray.models.base_model import Components
from sdxl_ray.models.device import DTYPES
from sdxl_ray.training.disk_errors import disk_problem
from sdxl_ray.training.loop import TrainingLoop
from sdxl_ray.training.state import read_state


def go_back(run: TrainingLoop, last: int) -> int:
    """Collective. Put the best step's weights into the run where scores have chosen one; the step they are of.

    Without scores the last weights are the result: the validation loss of a few images does not follow what is seen.
    """
    best = run.best.step
    if run.score is None or best is None or best == last:
        return last
    info = run.store.at(best)
    if info is None:
        run.report({"kind": "note", "text": f"the best checkpoint, of step {best}, is damaged: exporting step {last}"})
        return last
    read_state(run.engine, run.ema, info)
    return best


def export(run: TrainingLoop, step: int, components: Components, final: Path, precision: torch.dtype) -> None:
    """Collective. Write the run's weights, which are those of `step`, as the artifact `final`. precision: of the run.

    All ranks gather, rank 0 writes beside and renames. Raises RunError on every rank when the disk is full.
    """
    group = run.engine.group
    beside = final.with_name("artifact.partial")
    averaged = run.ema.swapped_in() if run.ema is not None else nullcontext()
    problem = None
    with averaged, run.engine.whole():
        if group.rank == 0:
            try:
                _write_artifact(run, step, components, precision, beside, final.parent / "samples" / "grid.png")
                publish(beside, final)
            except Exception as error:
                shutil.rmtree(beside, ignore_errors=True)
                if (reason := disk_problem(error)) is None:
                    raise
                problem = f"the artifact could not be written: {reason}; all checkpoints are intact"
    problem = group.gather(problem)[0]
    if problem:
        raise RunError(problem)
    run.report({"kind": "artifact", "step": step, "path": str(final)})


def _write_artifact(
    run: TrainingLoop, step: int, components: Components, precision: torch.dtype, beside: Path, samples: Path
) -> None:
    """samples: the run's grid of sample images, shown by the model card where there is one."""
    recipe = run.recipe
    name = next(name for name, dtype in DTYPES.items() if dtype == precision)
    dtype = DTYPES[recipe.artifact.written_in(recipe.tuning.kind, name)]
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    TUNINGS[type(recipe.tuning)].export(run.engine.denoiser, components, beside, recipe, dtype)
    if recipe.artifact.single_file:
        prediction = components.scheduler.config.get("prediction_type", "epsilon")
        pixels = recipe.data.resolution or components.native_resolution
        write_single_file(beside, beside / SINGLE_FILE, metadata=checkpoint_metadata(recipe, prediction, pixels))
    artifact = write_manifest(
        beside,
        kind="lora" if isinstance(recipe.tuning, LoraTuning) else "full",
        recipe=recipe.model_dump(mode="json"),
        recipe_identity=recipe.identity,
        base_id=components.files.id,
        base_revision=components.files.revision,
        step=step,
    )
    if samples.is_file():
        shutil.copyfile(samples, beside / CARD_IMAGE)
    scores = dict(run.best.evaluations).get(step, {})
    write_card(beside, artifact.manifest, recipe, scores, image=samples.is_file())
