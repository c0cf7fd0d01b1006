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
        print_json(summary(findings) | {"can_train": _what_fits()})
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            state = "" if finding.state == "ok" else finding.state
            typer.echo(f"{state:<6}  {finding.name:<{width}}  {finding.value}")
            if finding.fix:
                typer.echo(f"{'':<6}  {'':<{width}}  -> {finding.fix}")
        typer.echo("\n" + "\n".join(_what_fits()))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def _what_fits() -> list[str]:
    """One line per shipped recipe: whether one worker on this machine can train it, or what it lacks."""
    from sdxl_ray import config
    from sdxl_ray.cli.devices import cpu_here, gpu_here
    from sdxl_ray.plan import DoesNotFit, Plan

    lines = []
    gpu = gpu_here()
    for name in config.names():
        recipe = config.override(config.load(name), {"parallel.workers": 1})
        device = gpu or cpu_here(recipe)
        try:
            Plan.of(recipe, device).check()
            lines.append(f"can train    {name} (one worker on {device.name})")
        except DoesNotFit as error:
            lines.append(f"cannot train {name}: {error}")
    return lines
