"""Arguments that several commands share, and how they become a Recipe."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sdxl_ray.config import Recipe
    from sdxl_ray.sections import Base

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="name of a shipped recipe, or a .yaml file")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[A.B=C]...", help="settings to change, for example optim.lr=1e-4")
]
BaseId = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="tiny, a hub id with @revision, a diffusers folder or a file"),
]
StorageAt = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="DIR|URL",
        envvar="SDXL_RAY_STORAGE",
        help="where runs and caches are: a folder (~ is home) or s3://, gs://, abfss://; every node must reach it",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]


def read_recipe(name: str, settings: list[str] | None, base: str | None = None) -> Recipe:
    """The recipe with the command line's settings in it; `--base` is applied first, so `base.vae=...` still works.

    Raises UserError for an unknown recipe, setting or value.
    """
    from sdxl_ray import config

    recipe = config.load(name)
    if base is not None:
        recipe = recipe.model_copy(update={"base": read_base(base)})
    return config.override(recipe, config.parse_assignments(settings or []))


def read_base(text: str) -> Base:
    """`"tiny"`, `"folder"`, `"model.safetensors"` or `"org/name@<40-hex commit>"` as a Base."""
    from sdxl_ray import config

    name, at, revision = text.rpartition("@")
    plain: dict[str, Any] = {"id": name, "revision": revision} if at and name.count("/") == 1 else {"id": text}
    return config.parse({"base": plain}, "--base").base


@contextlib.contextmanager
def libraries_on_stderr() -> Iterator[None]:
    """While it lasts, what anybody prints goes to stderr, as progress does: stdout is for the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(value: Any) -> None:
    """One JSON object on stdout, and nothing else."""
    typer.echo(json.dumps(value, indent=2, default=str, allow_nan=False))
