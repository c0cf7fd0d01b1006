"""`sdxl-ray report`: the report of a comparison or a search, made again from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, print_json
from sdxl_ray.paths import local_folder

EXAMPLES = ("sdxl-ray report runs/demo-comparison", "sdxl-ray report runs/demo-comparison --open")


def run(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=local_folder,
            metavar="FOLDER",
            help="<storage>/<experiment>-comparison of compare, or a search's of tune",
        ),
    ],
    *,
    show: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
    json: AsJson = False,
) -> None:
    """Make a report again, from records alone."""
    from sdxl_ray.report.build import write_report

    written = write_report(folder)
    if show:
        import webbrowser

        webbrowser.open(written.html.as_uri())
    if json:
        print_json(written.plain)
        return
    typer.echo(f"report    {written.html}\nmarkdown  {written.markdown}\njson      {written.json}")
