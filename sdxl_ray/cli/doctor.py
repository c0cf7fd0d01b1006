"""`sdxl-ray doctor`: what this machine can do, and what is unsafe about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, print_json

EXAMPLES = ("sdxl-ray doctor", "sdxl-ray doctor --json")


def run(
    storage: Annotated[Path, typer.Option("--storage", metavar="DIR", help="where runs will be written")] = Path(
        "runs"
    ),
    json: AsJson = False,
) -> None:
    """Say what this machine can do, and what is unsafe. Exit 1 when something is broken."""
    from sdxl_ray.distributed.doctor import examine, summary

    findings = examine(storage)
    if json:
        print_json(summary(findings))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            state = "" if finding.state == "ok" else finding.state
            typer.echo(f"{state:<6}  {finding.name:<{width}}  {finding.value}")
            if finding.fix:
                typer.echo(f"{'':<6}  {'':<{width}}  -> {finding.fix}")
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
