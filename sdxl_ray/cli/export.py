"""`sdxl-ray export`: an artifact in the format that another tool reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, BaseId, print_json
from sdxl_ray.errors import UserError, nearest
from sdxl_ray.paths import local_folder

EXAMPLES = (
    "sdxl-ray export runs/dog/artifact --to comfyui --out ComfyUI/models/loras/dog.safetensors",
    "sdxl-ray export runs/dog-dreambooth/artifact --to single-file --dtype fp16",
)

#: What each format is, as --help shows it.
FORMATS = {
    "diffusers": "a LoRA file, or the folder of a full model",
    "kohya": "a LoRA for ComfyUI, A1111, Forge and model sites",
    "comfyui": "a LoRA as kohya, a full model as single-file",
    "single-file": "a full model in one file",
    "merged": "a LoRA added to its base: a folder, or one file where --out ends in .safetensors",
}


def run(
    source: Annotated[
        str, typer.Argument(metavar="ARTIFACT", help="artifact folder of a run, or another tool's LoRA or model")
    ],
    *,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="; ".join(f"{k}: {v}" for k, v in FORMATS.items()))],
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="fp16, bf16 or fp32; default: as the artifact has it")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=local_folder, metavar="PATH", help="file or folder to write; default: exported/NAME..."),
    ] = None,
    base: BaseId = None,
    json: AsJson = False,
) -> None:
    """Write an artifact as the file or folder that another tool loads."""
    if source == "base":
        raise UserError("'base' is no artifact: give the artifact folder of a run")
    if to not in FORMATS:
        raise UserError(f"--to {to!r}: {nearest(to, FORMATS)}")

    from sdxl_ray.models.opening import name_of, require_there

    require_there(source)

    from sdxl_ray.config.recipe import read_base
    from sdxl_ray.models.device import DTYPES
    from sdxl_ray.models.exporting import Export, export_artifact
    from sdxl_ray.models.generation import GenerationSource

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    model = GenerationSource.of(source, read_base(base) if base else None)
    assert model.artifact is not None
    what = Export(model.artifact, model.base, name_of(source), DTYPES[dtype] if dtype else None)
    target, notes = export_artifact(what, to, out)
    for note in notes:
        typer.echo(note, err=True)
    if json:
        print_json({"path": str(target), "format": to, "artifact": model.artifact.hash})
    else:
        typer.echo(target)
