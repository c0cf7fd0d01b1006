"""`sdxl-ray compare`: the arms of an experiment under equal conditions, in one table and one image."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdxl_ray.cli.arguments import AsJson, Settings, StorageAt, libraries_on_stderr, print_json

if TYPE_CHECKING:
    pass

EXAMPLES = (
    "sdxl-ray compare demo",
    "sdxl-ray compare demo optim.steps=300 --storage longer",
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
    load: Annotated[bool, typer.Option(help="the experiment's load test; --no-load leaves it out")] = True,
    json: AsJson = False,
) -> None:
    """Train an experiment's arms, judge, load-test and report them."""
    from sdxl_ray.comparison.experiment import open_experiment, run_experiment
    from sdxl_ray.config.recipe import parse_assignments

    opened = open_experiment(experiment, parse_assignments(settings or []), load=load)

    from sdxl_ray.display.progress import Progress
    from sdxl_ray.io.storage import Storage

    with libraries_on_stderr(), Progress(sys.stderr) as progress:
        store = Storage.usable(storage)  # before a minute of imports
        progress.row({"kind": "phase", "name": "loading the libraries"})
        result, requests = run_experiment(opened, storage=store, address=address, on_row=progress.row)
    if json:
        scores = result.evaluation.scores if result.evaluation is not None else []
        report = str(result.report.html)
        found: dict[str, Any] = {"arms": result.rows, "scores": scores, "grid": str(result.grid), "report": report}
        if requests:
            from serve.loadtest.table import plain

            found["load"] = plain(requests)
        print_json(found)
        return
    typer.echo(result.table().text())
    if result.evaluation is not None:
        from sdxl_ray.cli.evaluation_text import describe

        typer.echo(f"\n{describe(result.evaluation)}")
    if requests:
        from serve.loadtest.table import describe as describe_load

        typer.echo(f"\n{describe_load(requests)}\n")
    for row in result.rows:
        typer.echo(f"artifact  {row['artifact']}")
    typer.echo(f"images  {result.grid}\nreport    {result.report.html}")
