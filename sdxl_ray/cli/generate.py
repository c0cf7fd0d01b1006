"""`sdxl-ray generate`: images from an artifact or from the base, as PNG files that say how they were made."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdxl_ray import __version__
from sdxl_ray.cli.arguments import (
    AsJson,
    BaseId,
    TokenLength,
    libraries_on_stderr,
    make_folder,
    print_json,
    read_token_length,
)
from sdxl_ray.cli.base_options import (
    BaseConfig,
    BaseVae,
    BaseVaePrecision,
    naming_options,
    read_base_options,
    require_no_settings,
)
from sdxl_ray.errors import UserError
from sdxl_ray.interrupts import keeping
from sdxl_ray.paths import local_folder

if TYPE_CHECKING:
    from PIL import Image


EXAMPLES = (
    'sdxl-ray generate runs/dog/artifact "a photo of sks dog on the beach" --seed 1 --n 4 --out images',
    'sdxl-ray generate base "a photo of a dog" --base tiny',
)


@naming_options()
def run(
    source: Annotated[str, typer.Argument(metavar="ARTIFACT|base", help="artifact folder of a run, or the word base")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="one prompt a word: quote them")],
    *,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="seed of the first image of each prompt")] = 0,
    n: Annotated[int, typer.Option("--n", min=1, max=1000, help="images per prompt, seeds counting up")] = 1,
    out: Annotated[
        Path, typer.Option(parser=local_folder, metavar="DIR", help="folder of the images, made when missing")
    ] = Path("images"),
    steps: Annotated[int, typer.Option(min=1, max=1000, help="denoising steps")] = 30,
    guidance: Annotated[float, typer.Option(min=0, max=100, help="classifier-free guidance; 1 is none")] = 7.5,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="what the images should not show")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="pixels: 1024 or 1216x832; default: the base's own")
    ] = None,
    max_token_length: TokenLength = None,
    base: BaseId = None,
    base_config: BaseConfig = None,
    base_vae: BaseVae = None,
    base_vae_precision: BaseVaePrecision = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="images drawn at once")] = 4,
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or fp16; auto: bf16 on a GPU (fp16 on one without it), else fp32")
    ] = "auto",
    json: AsJson = False,
) -> None:
    """Draw images with an artifact or the base, and a grid of them."""
    from sdxl_ray.models.generation import GenerationRequest, GenerationSource, generate_images

    width, height = _read_size(size)
    require_no_settings(prompts)
    request = GenerationRequest(
        prompts,
        seed,
        n,
        steps,
        guidance,
        negative,
        width,
        height,
        read_token_length(max_token_length),
        batch,
        precision,
    )
    request.check()
    model = GenerationSource.of(source, read_base_options(base, base_config, base_vae, base_vae_precision))
    for note in model.notes(request):
        typer.echo(note, err=True)
    make_folder(out, "--out")

    from sdxl_ray.display.progress import Progress

    paths = [out / f"{_file_name(prompts.index(prompt), prompt)}-{number}.png" for prompt, number in request.jobs]
    facts: dict[str, Any] = {
        "artifact": model.artifact.hash if model.artifact else "",
        "base": f"{model.base.id}@{model.base.revision}" if model.base.revision else model.base.id,
        "steps": steps,
        "guidance": guidance,
        "negative": negative or "",
        "software": f"sdxl-ray {__version__}",
    }
    sheet = out / "grid.png"
    kept = f"{out} keeps the images that are finished; the same command draws them all again, equal to the last bit"
    with libraries_on_stderr(), Progress(sys.stderr) as progress, keeping(lambda: kept):
        progress.row({"kind": "phase", "name": "loading the model"})

        from sdxl_ray.data.image_grid import grid
        from sdxl_ray.data.png import save_png

        def save(index: int, image: Image.Image, drawn_with: dict[str, Any]) -> None:
            prompt, number = request.jobs[index]
            save_png(image, paths[index], {"prompt": prompt, "seed": number, **facts, **drawn_with})

        images, drawn_with = generate_images(model, request, progress.row, save)
        rows = [images[start : start + n] for start in range(0, len(images), n)]
        facts |= drawn_with
        save_png(grid(rows, prompts, [f"seed {seed + count}" for count in range(n)]), sheet, facts)
    if json:
        made = [{"path": str(path), "prompt": p, "seed": s} for path, (p, s) in zip(paths, request.jobs, strict=True)]
        print_json({"images": made, "grid": str(sheet), **facts})
    else:
        for path in [*paths, sheet]:
            typer.echo(path)


def _read_size(text: str | None) -> tuple[int | None, int | None]:
    """`"1024"` -> (1024, 1024), `"1216x832"` -> (1216, 832): width, height in pixels."""
    if text is None:
        return None, None
    numbers = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    if numbers is None:
        raise UserError(f"--size {text!r}: write pixels as 1024 or as width x height, 1216x832")
    width = int(numbers[1])
    height = int(numbers[2] or numbers[1])
    if max(width, height) > 4096:
        raise UserError(f"--size {text!r}: at most 4096 pixels a side")
    for edge in (width, height):
        if edge % 8 or edge == 0:
            raise UserError(f"--size {text!r}: images have multiples of 8 pixels, try {max(8, round(edge / 8) * 8)}")
    return width, height


def _file_name(index: int, prompt: str) -> str:
    """Words of the prompt that any file system takes, after its number, since two prompts may begin alike."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return f"{index + 1}-{words}" if words else str(index + 1)
