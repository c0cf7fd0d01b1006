"""`sdxl-ray train`: one run, from a recipe to an artifact; the same command resumes a run that was killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdxl_ray.cli.arguments import (
    AsJson,
    BaseId,
    RecipeName,
    Settings,
    StorageAt,
    command,
    libraries_on_stderr,
    print_json,
    read_recipe,
)
from sdxl_ray.cli.devices import GpuMemoryOption, GpuOption, cpu_here, elsewhere, gpu_here, named
from sdxl_ray.cli.disk import require_room
from sdxl_ray.paths import required_name

if TYPE_CHECKING:
    from sdxl_ray.config.recipe import Recipe
    from sdxl_ray.config.schema import Base
    from sdxl_ray.plan import Device, Plan

EXAMPLES = (
    'sdxl-ray train tiny_lora data.images=photos/dog data.subject="sks dog"',
    'sdxl-ray train tiny_lora data.images=photos/dog data.subject="sks dog" optim.steps=1600 --extend',
    'sdxl-ray train dreambooth data.images=photos/dog data.subject="sks dog" data.class_name=dog parallel.workers=8',
)


def run(
    recipe: RecipeName,
    settings: Settings = None,
    *,
    base: BaseId = None,
    storage: StorageAt = "runs",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="run folder; default: from subject and recipe")
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster: auto or host:port")] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="train a run that has ended further, up to optim.steps")
    ] = False,
    gpu: GpuOption = None,
    gpu_memory: GpuMemoryOption = None,
    plan_check: Annotated[bool, typer.Option(help="refuse what the plan says cannot fit")] = True,
    json: AsJson = False,
) -> None:
    """Train a recipe; after a kill, the same command resumes it."""
    if name is not None:
        required_name(name)
    chosen = read_recipe(recipe, settings, base)
    chosen.require_complete()
    require_inputs(chosen)
    plan = None
    if plan_check:
        remote = chosen.parallel.engine == "zero" and elsewhere(address)
        plan = require_fit(chosen, gpu, gpu_memory, remote=remote)

    from sdxl_ray.display.progress import Progress
    from sdxl_ray.io.storage import Storage

    with libraries_on_stderr(), Progress(sys.stderr) as progress:
        store = Storage.usable(storage)  # before a minute of imports
        progress.row({"kind": "phase", "name": "loading the libraries"})

        from sdxl_ray.distributed.train import launch
        from sdxl_ray.training.run_directory import default_name

        if plan is not None and store.url is None:
            require_room(plan.saving, store.root, store.root / (name or default_name(chosen)))
        result = launch(chosen, storage=store, name=name, address=address, extend=extend, on_row=progress.row)
    if json:
        print_json({"folder": str(result.folder), "artifact": str(result.artifact), **result.summary})
        return
    typer.echo(f"run       {result.kept_at}")
    typer.echo(f"artifact  {result.artifact}")
    typer.echo(f"next      {command('generate', result.artifact, chosen.data.instance_prompt or 'a prompt')}")


def require_inputs(recipe: Recipe) -> None:
    """Refuse what is not there, of images and of a local base, before anything slow is imported."""
    from sdxl_ray.data.image_sources import require_sources

    require_local_base(recipe.base)
    require_sources(recipe.data)


def require_local_base(base: Base) -> None:
    """Refuse a file or folder that is no SDXL before its memory is planned; a hub id is looked up later."""
    from sdxl_ray.models.base_model_files import locate

    path = Path(base.id)
    if path.exists() or path.is_absolute() or path.suffix in (".ckpt", ".pt", ".pth", ".bin", ".safetensors"):
        locate(base)


def require_fit(recipe: Recipe, gpu: str | None, gpu_memory: str | None, *, remote: bool) -> Plan | None:
    """Raise DoesNotFit before anything starts; print the plan's warnings. None: what it would run on is not known."""
    from sdxl_ray.plan import Plan

    device = planned_for(recipe, gpu, gpu_memory, remote=remote)
    if device is None:
        return None
    plan = Plan.of(recipe, device)
    plan.check()
    for warning in plan.warnings:
        typer.echo(f"note: {warning}", err=True)
    return plan


def planned_for(recipe: Recipe, gpu: str | None, gpu_memory: str | None, *, remote: bool) -> Device | None:
    """The device to plan for; None, with a note, for another machine whose devices were not named."""
    device = named(gpu, gpu_memory)
    if device is None and remote:
        typer.echo("memory is not checked: name the cluster's GPUs with --gpu or --gpu-memory", err=True)
        return None
    without_gpu = recipe.resources.gpus_per_worker == 0
    return device or (None if without_gpu else gpu_here()) or cpu_here()
