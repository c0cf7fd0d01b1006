"""`sdxl-ray inspect`: what a file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, print_json
from sdxl_ray.errors import UserError
from sdxl_ray.paths import local_folder

if TYPE_CHECKING:
    from sdxl_ray.formats.inspection import Inspection

EXAMPLES = ("sdxl-ray inspect pixel_art.safetensors", "sdxl-ray inspect runs/dog/artifact --json")


def run(
    file: Annotated[
        Path,
        typer.Argument(parser=local_folder, metavar="FILE", help="a .safetensors file, or a folder that holds some"),
    ],
    *,
    json: AsJson = False,
) -> None:
    """Say what a LoRA's or model's file is, and which tools load it.

    Family, kind, ranks and alphas by part, metadata, and the hashes that model sites use. No model is loaded.
    """
    from sdxl_ray.formats.inspection import inspect

    if not file.exists():
        raise UserError(f"{str(file)!r}: no such file or folder")
    files = sorted(file.rglob("*.safetensors")) if file.is_dir() else [file]
    if not files:
        raise UserError(f"{str(file)!r} holds no .safetensors file: give one")
    found = [inspect(one) for one in files]
    if json:
        print_json({"files": [one.plain() for one in found]})
    else:
        typer.echo("\n\n".join(_text(one) for one in found))


def _text(found: Inspection) -> str:
    from sdxl_ray.display.units import bytes_text
    from sdxl_ray.formats.inspection import shown_metadata

    rows = [
        ("file", f"{found.file}, {bytes_text(found.bytes)}, {found.tensors} tensors"),
        ("kind", found.kind),
        ("family", found.family or "not told by its tensors"),
        ("numbers", ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())),
        ("loads in", ", ".join(found.readers) or "none of the tools that this project knows"),
    ]
    for name, part in found.parts.items():
        ranks = ", ".join(map(str, part.ranks)) or "none"
        alphas = ", ".join("the rank" if alpha is None else f"{alpha:g}" for alpha in part.alphas) or "none"
        rows.append((name, f"{part.layers} layers, rank {ranks}, alpha {alphas}"))
    if found.made_on:
        rows.append(("made on", found.made_on))
    rows += list(found.hashes.items())
    rows += [
        (name, "is right" if right else "is NOT that of these bytes") for name, right in found.stored_hashes.items()
    ]
    rows += list(shown_metadata(found.metadata).items())
    return "\n".join(f"{name:<10}  {value}" for name, value in rows)
