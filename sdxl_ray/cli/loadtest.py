"""`sdxl-ray loadtest`: load on a running endpoint, arm by arm, and how long its users waited."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sdxl_ray.cli.arguments import AsJson, libraries_on_stderr, print_json
from sdxl_ray.interrupts import keeping
from sdxl_ray.paths import local_folder

EXAMPLES = (
    "sdxl-ray loadtest quick --url http://127.0.0.1:8000",
    "sdxl-ray loadtest quick scenario=offline rates=[] queries=64",
    "sdxl-ray loadtest my_load.yaml rates=[1,2,4] bound.p99_ms=2000 --out runs/load",
)


def run(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="name of a shipped load test, or a .yaml file")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[A.B=C]...", help="settings to change, for example rates=[2,4]")
    ] = None,
    *,
    url: Annotated[str | None, typer.Option(metavar="URL", help="of the endpoint; default: the config's")] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=local_folder, metavar="DIR", help="folder of records; default: loadtests/<config>"),
    ] = None,
    json: AsJson = False,
) -> None:
    """Put load on a running endpoint and record every request."""
    from sdxl_ray.config.recipe import parse_assignments
    from sdxl_ray.display.progress import Progress
    from serve.loadtest.config import load_config
    from serve.loadtest.run import run_load_test
    from serve.loadtest.table import describe, plain

    changes: dict[str, Any] = parse_assignments(settings or [])
    if url is not None:
        changes["url"] = url
    test = load_config(config, changes)
    home = out or Path("loadtests") / Path(config).stem
    kept = f"{home} keeps the runs that are finished"
    with libraries_on_stderr(), Progress(sys.stderr) as progress, keeping(lambda: kept):
        rows = run_load_test(test, home, on_row=progress.row)
    if json:
        print_json({**plain(rows), "records": str(home / "records")})
        return
    typer.echo(describe(rows))
    typer.echo(f"\nrecords   {home / 'records'}")
