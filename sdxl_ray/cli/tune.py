"""`sdxl-ray tune`: search a recipe's settings on held-out quality; run the same command to resume after a kill."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, StorageAt, command, libraries_on_stderr, print_json
from sdxl_ray.cli.devices import GpuMemoryOption, GpuOption, elsewhere
from sdxl_ray.cli.train import planned_for, require_inputs
from sdxl_ray.paths import required_name

if TYPE_CHECKING:
    from sdxl_ray.config.recipe import Recipe
    from sdxl_ray.config.search_space import Space
    from sdxl_ray.plan import Device

EXAMPLES = (
    "sdxl-ray tune tiny_lora",
    'sdxl-ray tune tune_spaces/lora.yaml data.images=photos/dog data.subject="sks dog" data.class_name=dog',
    "sdxl-ray tune my_space.yaml budget.trials=40 --name dog-search --resume",
    "sdxl-ray tune --schema",
)


def run(
    space: Annotated[
        str | None, typer.Argument(metavar="SPACE", help="a .yaml file, or the name of one in tune_spaces/")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[A.B=C]...", help="settings of the recipe (optim.steps=400) or space (budget.trials=8)"
        ),
    ] = None,
    *,
    storage: StorageAt = "runs",
    name: Annotated[str | None, typer.Option(metavar="NAME", help="search folder; default: the space's name")] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster: auto or host:port")] = None,
    gpu: GpuOption = None,
    gpu_memory: GpuMemoryOption = None,
    plan_check: Annotated[bool, typer.Option(help="refuse what the plan says cannot fit")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="only resume a search that exists")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of a space and exit")] = False,
    json: AsJson = False,
) -> None:
    """Search a recipe's settings by held-out quality."""
    from sdxl_ray.config.recipe import parse_assignments
    from sdxl_ray.config.search_space import Space, names, open_space
    from sdxl_ray.errors import UserError
    from sdxl_ray.plan import Plan

    if schema:
        print_json(Space.model_json_schema())
        return
    if space is None:
        raise UserError(f"which space? Give a .yaml file or one of {', '.join(names())}")
    called = required_name(name or Path(space).stem)
    wanted, recipe = open_space(space, parse_assignments(settings or []))
    require_inputs(recipe)
    if plan_check:
        device = planned_for(recipe, gpu, gpu_memory, remote=elsewhere(address))
        if device is not None:
            Plan.of(recipe, device).check()
            _say_what_is_too_large(wanted, recipe, device)

    from sdxl_ray.display.trials import TrialsProgress, trials_table
    from sdxl_ray.io.storage import Storage

    with libraries_on_stderr(), TrialsProgress(sys.stderr, wanted.modes) as progress:
        store = Storage.usable(storage)  # before a minute of imports
        progress.row({"kind": "phase", "name": "loading the libraries"})

        from sdxl_ray.search.search import search

        result = search(wanted, recipe, storage=store, name=called, address=address, resume=resume, on_row=progress.row)
    rows = [{**trial.row(), "metrics": trial.metrics, "parameters": trial.parameters} for trial in result.trials]
    if json:
        reported = {"folder": result.kept_at, "best": str(result.best), "report": str(result.report.html)}
        print_json({**reported, "verdict": result.verdict.model_dump(mode="json"), "trials": rows})
        return
    typer.echo(trials_table(rows, wanted.modes).text())
    typer.echo(f"\n{result.verdict.sentence}\n")
    typer.echo(f"search    {result.kept_at}\nrecipe    {result.best}\nreport    {result.report.html}")
    typer.echo(f"next      {command('train', result.best)}")


def _say_what_is_too_large(space: Space, recipe: Recipe, device: Device) -> None:
    """A trial without room fails and is recorded, but costs its time: better not to propose it."""
    from sdxl_ray.display.trials import parameters_text
    from sdxl_ray.display.units import bytes_text
    from sdxl_ray.plan.search_cost import largest

    changes, plan = largest(space, recipe, device)
    if not plan.fits:
        needs = f"needs {bytes_text(plan.memory.needed_bytes)}, {device.name} has {bytes_text(plan.limit_bytes)}"
        text = f"the largest trial ({parameters_text(changes)}) {needs}: trials without room fail; narrow the space"
        typer.echo(text, err=True)
