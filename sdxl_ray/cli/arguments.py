"""Arguments that several commands share, and how they become a Recipe."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdxl_ray.errors import UserError

if TYPE_CHECKING:
    from sdxl_ray.config.recipe import Recipe
    from sdxl_ray.config.schema import MaxTokenLength

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="name of a shipped recipe, or a .yaml file")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[A.B=C]...", help="settings to change, for example optim.lr=1e-4")
]
BaseId = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="tiny, a hub id with @revision, a diffusers folder or a file"),
]


def _noted(storage: str) -> str:
    """Say where what is made inside the package of a Ray job would be lost."""
    inside = "://" not in storage and any(part.startswith("_ray_pkg_") for part in Path(storage).absolute().parts)
    if inside:
        text = (
            f"note: --storage {storage!r} is inside this job's package, which Ray deletes after the job: give a folder "
            "that outlives it, or a URL"
        )
        typer.echo(text, err=True)
    return storage


StorageAt = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="DIR|URL",
        envvar="SDXL_RAY_STORAGE",
        callback=_noted,
        help="where runs and caches are: a folder (~ is home) or s3://, gs://, abfss://; every node must reach it",
    ),
]
TokenLength = Annotated[
    int | None,
    typer.Option(
        "--max-token-length",
        metavar="75|150|225",
        help="tokens of a prompt that are used; default: as the artifact was trained",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]


def read_recipe(name: str, settings: list[str] | None, base: str | None = None) -> Recipe:
    """The recipe with the command line's settings in it; `--base` is applied first, so `base.vae=...` still works.

    Raises UserError for an unknown recipe, setting or value.
    """
    from sdxl_ray.config import recipe as recipe_files

    recipe = recipe_files.load(name)
    if base is not None:
        recipe = recipe.model_copy(update={"base": recipe_files.read_base(base)})
    return recipe_files.override(recipe, recipe_files.parse_assignments(settings or []))


def read_token_length(number: int | None) -> MaxTokenLength | None:
    """The value of `--max-token-length`. Raises UserError for a number that it cannot have."""
    from sdxl_ray.config.schema import TOKEN_LENGTHS

    chosen = next((length for length in TOKEN_LENGTHS if length == number), None)
    if number is not None and chosen is None:
        raise UserError(f"--max-token-length {number}: choose from {', '.join(map(str, TOKEN_LENGTHS))}")
    return chosen


def make_folder(folder: Path, option: str) -> None:
    """Make the folder that an option names, unless it is there. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {str(folder)!r} cannot be made: {error.strerror}") from None


@contextlib.contextmanager
def libraries_on_stderr() -> Iterator[None]:
    """While it lasts, what anybody prints goes to stderr, as progress does: stdout is for the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def command(*words: object) -> str:
    """A command to print: quoted, so that a shell reads spaces and `$HOME` as they are here."""
    return shlex.join(["sdxl-ray", *map(str, words)])


def print_json(value: Any) -> None:
    """One JSON object on stdout, and nothing else."""
    typer.echo(json.dumps(value, indent=2, default=str, allow_nan=False))
