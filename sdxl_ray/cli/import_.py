"""`sdxl-ray import`: an artifact from another tool's LoRA or model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, BaseId, print_json
from sdxl_ray.errors import UserError
from sdxl_ray.paths import local_folder

EXAMPLES = (
    "sdxl-ray import pixel_art.safetensors --base models/sd_xl_base_1.0.safetensors",
    "sdxl-ray import corgi.safetensors --word '<corgi>' --base tiny",
    "sdxl-ray import downloads/my_lora --base tiny --out imported/my_lora --allow-partial",
)


def run(
    file: Annotated[
        Path,
        typer.Argument(
            parser=local_folder,
            metavar="FILE",
            help="a .safetensors file, or a folder that PEFT or diffusers saved",
        ),
    ],
    *,
    base: BaseId = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=local_folder, metavar="DIR", help="folder of the artifact; default: imported/NAME"),
    ] = None,
    word: Annotated[
        str | None,
        typer.Option(metavar="WORD", help="what prompts call a textual inversion; default: the name of its file"),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="use a file of which some tensors fit no layer of the base")
    ] = False,
    json: AsJson = False,
) -> None:
    """Import another tool's LoRA, model or textual inversion.

    It reads files of kohya's scripts, ComfyUI, A1111, OneTrainer, LyCORIS, PEFT and diffusers.
    `generate`, `evaluate`, `serve` and `tuning.init` take such files directly too, and import them into the cache.
    """
    from sdxl_ray.models.opening import is_foreign

    if not is_foreign(file):
        raise UserError(
            f"{str(file)!r} is no file or folder of another tool: give a .safetensors file, a PEFT folder or a "
            "diffusers folder"
        )

    from sdxl_ray.config.recipe import read_base
    from sdxl_ray.models.importing import base_of, import_model

    made_on = base_of(file, read_base(base) if base else None)
    folder = out or Path("imported") / file.name.removesuffix(".safetensors")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--out {str(folder)!r} is not empty: give another folder")

    def note(text: str) -> None:
        typer.echo(text, err=True)

    artifact = import_model(file, made_on, folder, word=word, allow_partial=allow_partial, on_note=note)
    if json:
        manifest = artifact.manifest
        print_json({"artifact": str(folder), "hash": artifact.hash, "kind": manifest.kind, "origin": manifest.origin})
    else:
        typer.echo(folder)
