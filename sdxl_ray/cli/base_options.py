"""Options for the base of commands that take no recipe settings, and errors that name these options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdxl_ray.errors import RunError, UserError

if TYPE_CHECKING:
    from sdxl_ray.config.schema import Base

BaseConfig = Annotated[
    str | None,
    typer.Option(
        "--base-config", metavar="DIR", help="configs and tokenizers of a file that has other layers than SDXL"
    ),
]
BaseVae = Annotated[
    str | None, typer.Option("--base-vae", metavar="DIR", help="another VAE: a folder, or a hub id with @revision")
]
BaseVaePrecision = Annotated[
    str | None, typer.Option("--base-vae-precision", metavar="NAME", help="auto, fp32, bf16 or fp16; auto: fp32")
]

#: A setting in a message -> the option that sets it; they are applied in this order.
_OPTIONS = (
    (re.compile(r"\bbase=(\S+) base\.revision=(\w+)"), r"--base \1@\2"),
    (re.compile(r"\bbase\.vae=(\S+) with base\.vae_revision=(\w+)"), r"--base-vae \1@\2"),
    (re.compile(r"\bbase\.revision=(\w+)"), r"--base NAME@\1"),
    (re.compile(r"\bbase\.vae_revision=(\w+)"), r"--base-vae NAME@\1"),
    (re.compile(r"\bbase=(?=\S)"), "--base "),
    (re.compile(r"\bbase\.vae_precision\b"), "--base-vae-precision"),
    (re.compile(r"\bbase\.(config|vae)\b(?!_)"), r"--base-\1"),
    (re.compile(r"(--base-[a-z-]+)="), r"\1 "),
)


def read_base_options(base: str | None, config: str | None, vae: str | None, vae_precision: str | None) -> Base | None:
    """The base that the options describe; None without `--base`. Raises UserError."""
    from sdxl_ray.config import recipe as recipe_files

    given = {"config": config, "vae": vae, "vae_precision": vae_precision}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if base is None:
        if changes:
            option = f"--base-{next(iter(changes)).replace('_', '-')}"
            raise UserError(f"{option} changes the base that --base names: give --base too")
        return None
    if vae is not None and vae.count("/") == 1 and "@" in vae:
        changes["vae"], _, changes["vae_revision"] = vae.rpartition("@")
    plain = recipe_files.read_base(base).model_dump(mode="json")
    return recipe_files.parse({"base": {**plain, **changes}}, "--base").base


def require_no_settings(prompts: list[str]) -> None:
    """Raise UserError for a prompt that was meant as a setting, as `train` takes them."""
    for prompt in prompts:
        if re.match(r"base\.\w+=", prompt):
            raise UserError(f"a prompt looks like a setting: give {_as_options(prompt)}")


@contextmanager
def naming_options() -> Iterator[None]:
    """Inside, an error that tells to set `base.vae=...` names the command line's option instead."""
    try:
        yield
    except (UserError, RunError) as error:
        text = _as_options(str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error


def _as_options(text: str) -> str:
    for setting, option in _OPTIONS:
        text = setting.sub(option, text)
    return text
