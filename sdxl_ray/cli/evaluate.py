"""`sdxl-ray evaluate`: how well models draw a subject, how much of the base they kept, with intervals."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdxl_ray.cli.arguments import (
    AsJson,
    BaseId,
    TokenLength,
    libraries_on_stderr,
    make_folder,
    print_json,
    read_token_length,
)
from sdxl_ray.cli.base_options import BaseConfig, BaseVae, BaseVaePrecision, naming_options, read_base_options
from sdxl_ray.errors import UserError
from sdxl_ray.interrupts import keeping
from sdxl_ray.paths import local_folder

if TYPE_CHECKING:
    from sdxl_ray.evaluation.runner import EvaluationResult

EXAMPLES = (
    "sdxl-ray evaluate base runs/dog/artifact --subject photos/dog/held_out --class-name dog",
    "sdxl-ray evaluate base lora=runs/a/artifact full=runs/b/artifact --seeds 8 --out scores",
    "sdxl-ray evaluate base --subject subject:robot/held_out --class-name robot",
    "sdxl-ray evaluate base runs/dog/artifact --workers 2",
)


@naming_options()
def run(
    sources: Annotated[
        list[str], typer.Argument(metavar="[NAME=]ARTIFACT|base...", help="artifact folders of runs, or the word base")
    ],
    *,
    subject: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="held-out photos, or subject:NAME/held_out; default: the artifact's own"),
    ] = None,
    other: Annotated[
        str | None, typer.Option(metavar="DIR", help="photos of another subject of the class, as a reference")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option(metavar="CLASS", help="what the subject is: dog; default: the artifact's recipe's")
    ] = None,
    called: Annotated[
        str | None, typer.Option(metavar="WORDS", help="the subject in prompts: 'sks dog'; default: the recipe's")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="LIST", help="shipped list, .yaml or .txt; default: by base and class")
    ] = None,
    split: Annotated[str, typer.Option(help="list and seeds: final, tune or validation")] = "final",
    out: Annotated[
        Path, typer.Option(parser=local_folder, metavar="DIR", help="folder of records, images and grid")
    ] = Path("evaluation"),
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="denoising steps; default: the recipe's")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, max=100, help="classifier-free guidance; default: the recipe's")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="images per prompt")] = 4,
    class_images: Annotated[int, typer.Option(min=2, max=10_000, help="images of the plain class")] = 16,
    size: Annotated[int | None, typer.Option(min=8, max=4096, help="pixels; default: the base's own")] = None,
    identity: Annotated[
        str | None, typer.Option(metavar="ENCODER", help="for dino_i, pres, div: name, folder or hub id@commit")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="ENCODER", help="for clip_i, clip_t, class_kid: name, folder or hub id@commit")
    ] = None,
    max_token_length: TokenLength = None,
    base: BaseId = None,
    base_config: BaseConfig = None,
    base_vae: BaseVae = None,
    base_vae_precision: BaseVaePrecision = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="images drawn at once")] = 8,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Ray workers that draw; default: this process, or all of --address"),
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster: auto or host:port")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16; auto: bf16 on a GPU, else fp32")] = "auto",
    json: AsJson = False,
) -> None:
    """Score what models learnt and forgot, by held-out photos."""
    from sdxl_ray.evaluation.request import EvaluationRequest, open_request
    from sdxl_ray.models.generation import PRECISIONS

    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    request = EvaluationRequest(
        sources=sources,
        subject=subject,
        other=other,
        class_name=class_name,
        called=called,
        prompts=prompts,
        split=split,
        seeds=seeds,
        class_images=class_images,
        steps=steps,
        guidance=guidance,
        size=size,
        identity=identity,
        clip=clip,
        max_token_length=read_token_length(max_token_length),
        base=read_base_options(base, base_config, base_vae, base_vae_precision),
        batch=batch,
        precision=precision,
    )
    opened = open_request(request)  # what is quickly found wrong comes before the libraries are loaded
    make_folder(out, "--out")

    from sdxl_ray.display.progress import Progress

    with libraries_on_stderr(), Progress(sys.stderr) as progress, _keeping(out):
        progress.row({"kind": "phase", "name": "loading the libraries"})

        from sdxl_ray.distributed.evaluate import evaluate_request

        resolved, found = evaluate_request(opened, out, workers=workers, address=address, on_row=progress.row)
        sheet = _grid(found, out)
    if json:
        print_json({"subject": resolved.subject.name, "class": opened.class_name, "split": split,
                    "scores": found.scores, "differences": found.differences, "absent": found.absent,
                    "images": len(found.images), "records": str(out / "records"), "grid": str(sheet)})  # fmt: skip
        return
    from sdxl_ray.cli.evaluation_text import describe

    typer.echo(describe(found))
    typer.echo(f"\nrecords   {out / 'records'}\nimages    {sheet}")


def _keeping(out: Path) -> AbstractContextManager[None]:
    return keeping(lambda: f"{out} keeps the images that are finished; the same command makes the others")


def _grid(found: EvaluationResult, out: Path) -> Path:
    """Rows are prompts at the first seed, columns models, and one of the photos beside them."""
    from PIL import Image

    from sdxl_ray.data.image_grid import grid

    drawn = [row for row in found.images if row["purpose"] == "subject"]
    models = list(dict.fromkeys(row["model"] for row in drawn))
    seed = drawn[0]["seed"]
    at = {(row["prompt"], row["model"]): out / row["path"] for row in drawn if row["seed"] == seed}
    prompts = list(dict.fromkeys(row["prompt"] for row in drawn))
    rows = [[Image.open(at[prompt, model]) for model in models] for prompt in prompts]
    photos = [Image.open(out / row["path"]) for row in found.images if row["purpose"] == "real"]
    sheet = out / "grid.png"
    beside = [[*row, photos[number % len(photos)]] for number, row in enumerate(rows)]
    grid(beside, prompts, [*models, "a real photo"]).save(sheet)
    return sheet
