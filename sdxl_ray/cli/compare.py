"""`sdxl-ray compare`: the arms of an experiment under equal conditions, in one table and one picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, Settings, StorageAt, libraries_on_stderr, print_json

EXAMPLES = (
    "sdxl-ray compare demo",
    "sdxl-ray compare demo optim.steps=300 --storage runs",
    "sdxl-ray compare my_experiment.yaml",
)


def run(
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT", help="name of a shipped experiment, or a .yaml file")
    ],
    settings: Settings = None,
    *,
    storage: StorageAt = "runs",
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster: auto or host:port")] = None,
    json: AsJson = False,
) -> None:
    """Train an experiment's arms, judge them, write one report."""
    from sdxl_ray.config import parse_assignments
    from sdxl_ray.experiment import load_experiment

    plan = load_experiment(experiment)
    recipes = plan.recipes(parse_assignments(settings or []))

    from sdxl_ray.display.progress import Progress

    with libraries_on_stderr(), Progress(sys.stderr) as progress:
        progress.row({"kind": "phase", "name": "loading the libraries"})

        from sdxl_ray.distributed.compare import compare

        name = Path(experiment).stem
        result = compare(name, plan, recipes, storage=storage, address=address, on_row=progress.row)
    if json:
        scores = result.evaluation.scores if result.evaluation is not None else []
        report = str(result.report.html)
        print_json({"arms": result.rows, "scores": scores, "grid": str(result.grid), "report": report})
        return
    typer.echo(result.table().text())
    if result.evaluation is not None:
        from sdxl_ray.cli.evaluation_text import describe

        typer.echo(f"\n{describe(result.evaluation)}")
    for row in result.rows:
        typer.echo(f"artifact  {row['artifact']}")
    typer.echo(f"pictures  {result.grid}\nreport    {result.report.html}")
