"""`--extend`: the same run with more steps. Its records and checkpoints stay, and it resumes from its last step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdxl_ray.config.recipe import Recipe, override, parse
from sdxl_ray.errors import UserError
from sdxl_ray.training.run_directory import RunFolder, provenance_of, write_recipe

#: Learning rates of these schedules depend on the step alone, so steps that are done stay as they would be.
_OPEN_ENDED = ("constant", "constant_with_warmup", "piecewise_constant")


def find_extensible(recipe: Recipe, storage: Path) -> str:
    """The name of the run that differs from `recipe` by fewer (or as many) steps alone; the longest of them.

    Raises UserError when the storage holds none.
    """
    found: dict[str, int] = {}
    for file in storage.glob("*/run.json"):
        try:
            there = _recipe(provenance_of(file.parent)["recipe"])
        except UserError:
            continue
        if there is not None and _with_steps(there, recipe).identity == recipe.identity:
            found[file.parent.name] = there.optim.steps
    fits = {name: steps for name, steps in found.items() if steps <= recipe.optim.steps}
    if not fits:
        raise UserError(
            f"--extend: no run in {str(storage)!r} has this recipe with fewer steps than {recipe.optim.steps}: give "
            "its --name to learn what differs, or leave --extend out to begin a run"
        )
    return max(fits, key=lambda name: fits[name])


def extend(recipe: Recipe, run: RunFolder) -> None:
    """Let the run in a folder go up to `recipe.optim.steps`; nothing changes where it does already.

    Raises UserError: no run there, fewer steps than it has, a schedule that more steps would change, an early stop.
    What else differs is found when the run is opened.
    """
    folder = run.folder
    if not (folder / "run.json").is_file():
        raise UserError(f"--extend: no run in {str(folder)!r}: check --name and --storage, or leave --extend out")
    made = provenance_of(folder)
    there = _recipe(made["recipe"])
    if (
        there is None
        or _with_steps(there, recipe).identity != recipe.identity
        or there.optim.steps == recipe.optim.steps
    ):
        return
    before, after = there.optim.steps, recipe.optim.steps
    if after < before:
        raise UserError(
            f"--extend: the run in {str(folder)!r} has {before} steps, optim.steps={after} is below: raise it"
        )
    otherwise = f"start a new run from its result instead: tuning.init={run.artifact}"
    if recipe.optim.lr_scheduler not in _OPEN_ENDED:
        raise UserError(
            f"--extend: optim.lr_scheduler={recipe.optim.lr_scheduler} spreads over optim.steps, so {after} steps "
            f"would have had other rates from the start ({', '.join(_OPEN_ENDED)} allow it): {otherwise}"
        )
    summary = run.summary()
    if summary is not None and summary["stopped_early"]:
        raise UserError(
            f"--extend: the run stopped at step {summary['steps']} because of evaluation.patience="
            f"{recipe.evaluation.patience}, not of optim.steps: {otherwise}"
        )
    (folder / "summary.json").unlink(missing_ok=True)
    write_recipe(folder, {**made, "recipe": recipe.model_dump(mode="json")})


def _recipe(plain: dict[str, Any]) -> Recipe | None:
    """None: of a later version."""
    try:
        return parse(plain)
    except UserError:
        return None


def _with_steps(there: Recipe, wanted: Recipe) -> Recipe:
    return override(there, {"optim.steps": wanted.optim.steps})
