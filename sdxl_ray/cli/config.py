"""`sdxl-ray config`: every setting that a recipe has, or one recipe with nothing left out."""

from __future__ import annotations

from typing import Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, BaseId, Settings, print_json, read_recipe

EXAMPLES = ("sdxl-ray config", "sdxl-ray config lora optim.lr=5e-5")


def run(
    name: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="recipe to print; default: the reference")
    ] = None,
    settings: Settings = None,
    base: BaseId = None,
    json: AsJson = False,
) -> None:
    """Print every setting and its default, or one recipe in full."""
    if name is not None:
        recipe = read_recipe(name, settings, base).model_dump(mode="json")
        if json:
            print_json(recipe)
        else:
            from sdxl_ray.config import yaml_loader

            typer.echo(yaml_loader.dump(recipe), nl=False)
        return
    from sdxl_ray.cli.settings_reference import reference
    from sdxl_ray.config.recipe import Recipe

    lines = list(reference(Recipe))
    if json:
        print_json([line._asdict() for line in lines])
        return
    for line in lines:
        typer.echo(f"{line.path}: {line.values} = {line.default}" + (f"\n    {line.help}" if line.help else ""))
