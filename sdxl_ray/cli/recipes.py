"""`sdxl-ray recipes`: the recipes shipped with the package."""

from __future__ import annotations

from importlib import resources
from typing import Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, print_json

EXAMPLES = ("sdxl-ray recipes", "sdxl-ray recipes lora > mine.yaml")


def run(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="print this recipe's YAML")] = None,
    json: AsJson = False,
) -> None:
    """List the shipped recipes, or print one as a start for your own."""
    from sdxl_ray.config import recipe as recipe_files
    from sdxl_ray.errors import UserError, nearest

    folder = resources.files("sdxl_ray") / "recipes"
    texts = {known: (folder / f"{known}.yaml").read_text() for known in recipe_files.names()}
    if name is not None:
        if name not in texts:
            raise UserError(f"no recipe named {name!r}: {nearest(name, texts)}")
        if json:
            print_json(recipe_files.load(name).model_dump(mode="json"))
        else:
            typer.echo(texts[name], nl=False)
        return
    firsts = {known: text.partition("\n")[0].lstrip("# ") for known, text in texts.items()}
    if json:
        print_json(firsts)
        return
    width = max(map(len, firsts))
    for known, first in firsts.items():
        typer.echo(f"{known:<{width}}  {first}")
