"""`sdxl-ray merge`: several LoRAs, each with a weight, as one LoRA or one whole model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdxl_ray.cli.arguments import AsJson, BaseId, libraries_on_stderr, print_json
from sdxl_ray.errors import RunError, UserError, nearest
from sdxl_ray.paths import local_folder

if TYPE_CHECKING:
    from sdxl_ray.models.merge import MergeResult

EXAMPLES = (
    "sdxl-ray merge runs/dog/artifact=0.8 runs/cat/artifact=0.6 --out runs/both",
    "sdxl-ray merge runs/dog/artifact runs/cat/artifact --method ties --density 0.5 --rank 32 --out runs/ties",
    "sdxl-ray merge runs/dog/artifact --into model --dtype fp16 --blocks down=1,mid=0.5,up=0.2 --out runs/model",
)

_DTYPES = ("fp32", "bf16", "fp16")
#: A residual above which the merge is another than the method means.
_MUCH = 0.1


def run(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="ARTIFACT[=WEIGHT]...", help="LoRA artifacts; a weight that is not given is 1"),
    ],
    *,
    method: Annotated[
        str,
        typer.Option(
            help="linear and concat: the exact sum; svd: the sum at a lower rank; ties, dare_linear, "
            "dare_ties, magnitude_prune: of pruned changes"
        ),
    ] = "linear",
    density: Annotated[
        float | None, typer.Option(metavar="SHARE", help="values that stay when a method prunes; default: 0.5")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(metavar="N", help="of the LoRA; default: the sum of the ranks, with svd the largest of them"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="of dare_linear and dare_ties; default: 0")
    ] = None,
    into: Annotated[
        str, typer.Option(metavar="lora|model", help="what is written; model: a diffusers folder")
    ] = "lora",
    blocks: Annotated[
        str,
        typer.Option(metavar="NAME=STRENGTH,...", help="down, mid, up, text_encoder, text_encoder_2, down_blocks.1"),
    ] = "",
    dtype: Annotated[
        str | None, typer.Option(metavar="fp32|bf16|fp16", help="of the files; default: lora fp32, model as the base")
    ] = None,
    base: BaseId = None,
    out: Annotated[
        Path, typer.Option(parser=local_folder, metavar="DIR", help="folder of the artifact; it must not exist")
    ] = Path("merged"),
    json: AsJson = False,
) -> None:
    """Merge LoRAs into one LoRA or into the base's weights."""
    from sdxl_ray.config.merging import Merging, parse_source, read_blocks
    from sdxl_ray.config.recipe import read_base
    from sdxl_ray.config.schema_errors import validated
    from sdxl_ray.display.progress import Progress
    from sdxl_ray.models.opening import require_there

    if dtype not in (None, *_DTYPES):
        raise UserError(f"--dtype {dtype!r}: {nearest(str(dtype), _DTYPES)}")
    plain = {"method": method, "density": density, "rank": rank, "seed": seed, "into": into}
    merging = validated(Merging, {**plain, "blocks": read_blocks(blocks)}, "merge")
    weighted = [parse_source(text) for text in sources]
    for path, _ in weighted:
        require_there(path)
    with libraries_on_stderr(), Progress(sys.stderr) as progress:
        progress.row({"kind": "phase", "name": "loading the libraries"})
        from sdxl_ray.models.device import DTYPES
        from sdxl_ray.models.merge import merge
        from sdxl_ray.models.merge_sources import open_merge, open_source, require_new
        from sdxl_ray.training.disk_errors import disk_problem

        on = read_base(base) if base is not None else None
        opened = open_merge([open_source(*one, on) for one in weighted], merging, base=on)
        require_new(out, opened.sources)
        try:
            result = merge(opened, out, dtype=DTYPES[dtype] if dtype else None, on_row=progress.row)
        except Exception as error:
            if (reason := disk_problem(error)) is None:
                raise
            raise RunError(f"--out {str(out)!r} cannot be written: {reason}") from None
    if json:
        print_json(_plain(result))
    else:
        typer.echo(_described(result))


def _plain(result: MergeResult) -> dict[str, Any]:
    manifest = result.artifact.manifest
    found = {"artifact": str(result.artifact.folder), "hash": result.artifact.hash, "kind": manifest.kind}
    return {
        **found,
        "layers": result.layers,
        "ranks": result.ranks,
        "residual": result.residual,
        **(manifest.origin or {}),
    }


def _lost(residual: float) -> str:
    if residual == 0:
        return "none: exact"
    lost = f"{residual:.2%} of the change (Frobenius norm) does not fit the rank"
    return f"{lost}: raise --rank, or take --into model, which keeps all" if residual > _MUCH else lost


def _described(result: MergeResult) -> str:
    lines = [f"artifact  {result.artifact.folder}", f"layers    {result.layers}"]
    if result.ranks is not None:
        low, high = result.ranks
        lines.append(f"rank      {low if low == high else f'{low} to {high}'}")
        lines.append(f"residual  {_lost(result.residual)}")
    return "\n".join(lines)
