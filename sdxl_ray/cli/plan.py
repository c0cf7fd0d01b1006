"""`sdxl-ray plan`: memory, time and cost of a run before anything is rented."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, BaseId, RecipeName, Settings, print_json, read_recipe
from sdxl_ray.cli.devices import GpuMemoryOption, GpuOption, count_images, gpu_here, named
from sdxl_ray.cli.disk import require_room
from sdxl_ray.paths import local_folder

if TYPE_CHECKING:
    from sdxl_ray.config.recipe import Recipe

EXAMPLES = (
    "sdxl-ray plan lora --gpu 4090",
    "sdxl-ray plan dreambooth --gpu-memory 80GiB --workers 4 --price-per-hour 2.50",
)

#: Planned for when no device is named and none is here.
DEFAULT_GPU = "h100"


def run(
    recipe: RecipeName,
    settings: Settings = None,
    *,
    gpu: GpuOption = None,
    gpu_memory: GpuMemoryOption = None,
    workers: Annotated[int | None, typer.Option(min=1, max=65536, help="devices; default: the recipe's least")] = None,
    price: Annotated[float | None, typer.Option("--price-per-hour", help="of one device, in any currency")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="training images; default: those in data.images")] = None,
    storage: Annotated[
        Path | None,
        typer.Option(parser=local_folder, metavar="DIR", help="refuse what this folder's disk has no room for"),
    ] = None,
    base: BaseId = None,
    json: AsJson = False,
) -> None:
    """Say what a run needs, and refuse what cannot fit (exit 2)."""
    from sdxl_ray.config.base_lineage import of_embedded_base
    from sdxl_ray.plan import CPU, DEVICES, Plan

    chosen = read_recipe(recipe, settings, base)
    device = named(gpu, gpu_memory) or gpu_here()
    if device is None:
        device = CPU if of_embedded_base(chosen.base.id) else DEVICES[DEFAULT_GPU]
        typer.echo(f"no GPU named and none here: planned for {device.name} (--gpu NAME, --gpu-memory 24GiB)", err=True)
    plan = Plan.of(chosen, device, workers, price, images or count_images(chosen))
    notes = [*_notes(chosen), *plan.warnings]
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if json:
        print_json({**plan.plain(), "notes": notes})
    else:
        typer.echo(plan.text())
    plan.check()
    if storage is not None:
        require_room(plan.saving, storage)


def _notes(recipe: Recipe) -> list[str]:
    """What the recipe and the names of its files say; what is wrong with the files is said by the run."""
    from sdxl_ray.config.notes import recipe_notes
    from sdxl_ray.errors import UserError
    from sdxl_ray.training.input_notes import unread_notes

    try:
        return [*recipe_notes(recipe), *unread_notes(recipe)]
    except UserError:
        return recipe_notes(recipe)
