"""`sdxl-ray train`: one run, from a recipe to an artifact; the same command goes on with a run that was killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, BaseId, RecipeName, Settings, libraries_on_stderr, print_json, read_recipe

EXAMPLES = (
    'sdxl-ray train tiny_lora data.images=photos/dog data.subject="sks dog"',
    'sdxl-ray train dreambooth data.images=photos/dog data.subject="sks dog" data.class_name=dog parallel.workers=8',
)


def run(
    recipe: RecipeName,
    settings: Settings = None,
    *,
    base: BaseId = None,
    storage: Annotated[Path, typer.Option(metavar="DIR", help="where run folders and caches are")] = Path("runs"),
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="run folder; default: from subject and recipe")
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster: auto or host:port")] = None,
    json: AsJson = False,
) -> None:
    """Train a recipe on Ray; after a kill, the same command goes on."""
    chosen = read_recipe(recipe, settings, base)
    chosen.require_complete()

    from sdxl_ray.report.progress import Progress

    with libraries_on_stderr(), Progress(sys.stderr) as progress:
        progress.row({"kind": "phase", "name": "loading the libraries"})

        from sdxl_ray.distributed.train import launch

        result = launch(chosen, storage=storage, name=name, address=address, on_row=progress.row)
    if json:
        print_json({"folder": str(result.folder), "artifact": str(result.artifact), **result.summary})
        return
    typer.echo(f"run       {result.folder}")
    typer.echo(f"artifact  {result.artifact}")
    typer.echo(f'next      sdxl-ray generate {result.artifact} "{chosen.data.instance_prompt or "a prompt"}"')
