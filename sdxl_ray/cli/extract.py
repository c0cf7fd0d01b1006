"""`sdxl-ray extract`: LoRAs of many ranks from one full model, with what each of them keeps."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdxl_ray.cli.arguments import AsJson, BaseId, TokenLength, libraries_on_stderr, print_json, read_token_length
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.interrupts import keeping
from sdxl_ray.paths import local_folder

if TYPE_CHECKING:
    from sdxl_ray.evaluation.request import EvaluationRequest
    from sdxl_ray.models.full_model import FullModel

EXAMPLES = (
    "sdxl-ray extract runs/dog/artifact --ranks 4,8,16,32,64 --energy 0.95",
    "sdxl-ray extract runs/dog/artifact --ranks 8,64,full --score",
    "sdxl-ray extract models/dog --base tiny --class-name dog --called 'sks dog' --subject photos/dog/held_out",
)
_DTYPES = ("fp16", "bf16", "fp32")
#: What evaluations call the model and its base.
_BASE, _FULL = "base", "full"


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="artifact of a full run, or a diffusers folder with --base")
    ],
    *,
    base: BaseId = None,
    ranks: Annotated[
        str, typer.Option(metavar="R,R...", help="a LoRA of each rank; full: of every layer's own")
    ] = "4,8,16,32,64",
    energy: Annotated[
        str, typer.Option(metavar="SHARE,...", help="a LoRA whose layers keep this share of their squared difference")
    ] = "",
    out: Annotated[
        Path, typer.Option(parser=local_folder, metavar="DIR", help="folder of the LoRAs, records and report")
    ] = Path("extracted"),
    dtype: Annotated[
        str | None, typer.Option(metavar="fp16|bf16|fp32", help="of the files; default: the model's UNet's")
    ] = None,
    score: Annotated[
        bool, typer.Option("--score", help="score base, model and LoRAs by the run's held-out photos, or --subject's")
    ] = False,
    subject: Annotated[
        str | None, typer.Option(metavar="DIR", help="score by these held-out photos, or subject:NAME/held_out")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option(metavar="CLASS", help="what the subject is: dog; default: the recipe's")
    ] = None,
    called: Annotated[
        str | None, typer.Option(metavar="WORDS", help="the subject in prompts: 'sks dog'; default: the recipe's")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="LIST", help="shipped list, .yaml or .txt; default: by base and class")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="denoising steps; default: the recipe's")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, max=100, help="classifier-free guidance; default: the recipe's")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="images per prompt")] = 4,
    class_images: Annotated[int, typer.Option(min=2, max=10_000, help="images of the plain class")] = 16,
    size: Annotated[int | None, typer.Option(min=8, max=4096, help="pixels; default: the base's own")] = None,
    identity: Annotated[str | None, typer.Option(metavar="ENCODER", help="as of evaluate")] = None,
    clip: Annotated[str | None, typer.Option(metavar="ENCODER", help="as of evaluate")] = None,
    max_token_length: TokenLength = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="images drawn at once")] = 8,
    precision: Annotated[str, typer.Option(help="of drawing: auto, fp32, bf16 or fp16")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, max=10_000, help="Ray workers that draw")] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster: auto or host:port")] = None,
    json: AsJson = False,
) -> None:
    """Make LoRAs of many ranks from a full model."""
    from sdxl_ray.config.recipe import read_base
    from sdxl_ray.models.generation import PRECISIONS
    from sdxl_ray.models.opening import require_there

    if dtype is not None and dtype not in _DTYPES:
        raise UserError(f"--dtype {dtype!r}: choose from {', '.join(_DTYPES)}")
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    length = read_token_length(max_token_length)
    require_there(model)

    from sdxl_ray.display.progress import Progress

    with libraries_on_stderr(), Progress(sys.stderr) as progress, _keeping(out):
        progress.row({"kind": "phase", "name": "loading the libraries"})

        from sdxl_ray.evaluation.request import EvaluationRequest, open_request, resolve
        from sdxl_ray.formats.extraction import rank_rules
        from sdxl_ray.models.device import DTYPES
        from sdxl_ray.models.extraction import extract
        from sdxl_ray.models.full_model import FullModel
        from sdxl_ray.report import extraction as report

        rules = rank_rules(ranks, energy)
        given = read_base(base) if base is not None else None
        opened = FullModel.open(model, given, subject=called, class_name=class_name)
        request = None
        if score or subject is not None:
            request = EvaluationRequest(
                sources=_sources(opened),
                subject=subject,
                class_name=class_name,
                called=called,
                prompts=prompts,
                seeds=seeds,
                class_images=class_images,
                steps=steps,
                guidance=guidance,
                size=size,
                identity=identity,
                clip=clip,
                max_token_length=length,
                base=given or opened.recipe.base,
                batch=batch,
                precision=precision,
            )
            resolve(open_request(request), lambda _: None)  # what is wrong with it comes before hours of extraction
        try:
            found = extract(opened, rules, out, dtype=DTYPES[dtype] if dtype else None, on_row=progress.row)
        except OSError as error:
            raise RunError(f"{str(out)!r} cannot be written: {error.strerror}; finished LoRAs stay") from error
        scores, differences = _scored(opened, request, found.artifacts, out, workers, address, progress.row)
        facts = report.ExtractionFacts(opened.name, found.rows, found.lost, scores, differences)
        html, plots = report.write(facts, out)
    if json:
        print_json({"model": str(opened.folder), "hash": opened.hash, "base": opened.files.id, "out": str(out),
                    "extractions": found.rows, "not_extracted": found.lost, "scores": scores,
                    "differences": differences, "verdict": report.verdict(facts) or None, "report": str(html),
                    "plots": [str(plot) for plot in plots]})  # fmt: skip
        return
    typer.echo(report.sizes_text(facts))
    for said in (_scores_text(facts), report.verdict(facts)):
        if said:
            typer.echo(f"\n{said}")
    typer.echo(f"\nLoRAs     {out}\nreport    {html}")


def _sources(model: FullModel) -> list[str]:
    """Base and full model, as evaluations name them; a plain diffusers folder is no artifact that could be scored."""
    return [_BASE, f"{_FULL}={model.folder}"] if model.artifact is not None else [_BASE]


def _scored(
    model: FullModel,
    request: EvaluationRequest | None,
    artifacts: Any,
    out: Path,
    workers: int | None,
    address: str | None,
    on_row: Any,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of scores and differences; none where no scores were asked for."""
    if request is None:
        return [], []
    from dataclasses import replace

    from sdxl_ray.distributed.evaluate import evaluate_request
    from sdxl_ray.evaluation.request import open_request

    if model.artifact is None:
        on_row({"kind": "note", "text": "note: the full model is not scored: it is no artifact of a run"})
    sources = [*_sources(model), *(f"{name}={artifact.folder}" for name, artifact in artifacts.items())]
    opened = open_request(replace(request, sources=sources))
    _, found = evaluate_request(opened, out / "evaluation", workers=workers, address=address, on_row=on_row)
    return found.scores, found.differences


def _scores_text(facts: Any) -> str:
    from sdxl_ray.display.table import Column, Table
    from sdxl_ray.report.document import score_text
    from sdxl_ray.report.metrics import METRICS, QUALITY

    metrics = [name for name in (QUALITY.name, *METRICS) if any(facts.score(model, name) for model in facts.models)]
    rows = [
        {"model": model, "share": facts.share(model) if model != _BASE else None}
        | {name: score_text(score) if (score := facts.score(model, name)) else None for name in metrics}
        for model in facts.models
    ]
    columns = [Column("model", "model"), *(Column(name, name, align="left") for name in metrics)]
    return Table([*columns, Column("share", "of full's gain", "{:.0%}".format)], rows).text() if rows else ""


def _keeping(out: Path) -> AbstractContextManager[None]:
    return keeping(lambda: f"{out} keeps the LoRAs and images that are finished; the same command makes the others")
