"""`sdxl-ray compare`: the arms of an experiment under equal conditions, in one table and one picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, Settings, libraries_on_stderr, print_json

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
    storage: Annotated[Path, typer.Option(metavar="DIR", help="where run folders and caches are")] = Path("runs"),
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster: auto or host:port")] = None,
    json: AsJson = False,
) -> None:
    """Train the arms of an experiment and compare them side by side."""
    from sdxl_ray.config import parse_assignments
    from sdxl_ray.experiment import load_experiment

    recipes = load_experiment(experiment).recipes(parse_assignments(settings or []))

    from sdxl_ray.report.progress import Progress

    with libraries_on_stderr(), Progress(sys.stderr) as progress:
        progress.row({"kind": "phase", "name": "loading the libraries"})

        from sdxl_ray.distributed.compare import compare

        name = Path(experiment).stem
        result = compare(name, recipes, storage=storage, address=address, on_row=progress.row)
    if json:
        print_json({"arms": result.rows, "grid": str(result.grid)})
        return
    typer.echo(result.table().text())
    typer.echo(f"\npictures  {result.grid}\ntable     {result.grid.with_name('table.md')}")
    for row in result.rows:
        typer.echo(f"artifact  {row['artifact']}")
