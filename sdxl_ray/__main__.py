"""The command line: `sdxl-ray COMMAND`, or `python -m sdxl_ray COMMAND` inside a Ray job.

Exit codes: 0; 1 the run failed; 2 the input is wrong (one line on stderr says what and the nearest fix); 130 after
Ctrl-C, 143 after SIGTERM (one line on stderr says what is kept and how to resume). Commands are the table below; each
imports what it needs when it runs.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from sdxl_ray import __version__
from sdxl_ray.cli import (
    compare,
    config,
    doctor,
    evaluate,
    export,
    extract,
    generate,
    import_,
    inspect,
    loadtest,
    merge,
    plan,
    recipes,
    report,
    serve,
    train,
    tune,
)
from sdxl_ray.cli.command import Command
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.interrupts import Interrupted, handled

#: What a user can do, in the order that --help shows.
COMMANDS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "plan": (plan.run, plan.EXAMPLES),
    "train": (train.run, train.EXAMPLES),
    "generate": (generate.run, generate.EXAMPLES),
    "evaluate": (evaluate.run, evaluate.EXAMPLES),
    "extract": (extract.run, extract.EXAMPLES),
    "tune": (tune.run, tune.EXAMPLES),
    "merge": (merge.run, merge.EXAMPLES),
    "serve": (serve.run, serve.EXAMPLES),
    "compare": (compare.run, compare.EXAMPLES),
    "loadtest": (loadtest.run, loadtest.EXAMPLES),
    "report": (report.run, report.EXAMPLES),
    "import": (import_.run, import_.EXAMPLES),
    "export": (export.run, export.EXAMPLES),
    "inspect": (inspect.run, inspect.EXAMPLES),
    "recipes": (recipes.run, recipes.EXAMPLES),
    "config": (config.run, config.EXAMPLES),
    "doctor": (doctor.run, doctor.EXAMPLES),
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdxl-ray {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Tune Stable Diffusion XL on Ray and prove what it bought."""


def build() -> typer.Typer:
    """The application: every command of the table, with its examples at the end of its help."""
    # Plain help and plain tracebacks: the same text in a terminal, a job's log and the README.
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True)
    app.callback()(_options)
    for name, (run, examples) in COMMANDS.items():
        lines = "\n".join(f"  {example}" for example in examples)
        app.command(name, cls=Command, epilog=f"\b\nExamples:\n{lines}")(_interruptible(run))
    return app


def _interruptible(run: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(run)
    def command(*words: Any, **options: Any) -> None:
        with handled():
            try:
                run(*words, **options)
            except Interrupted as interrupt:
                raise typer.Exit(interrupt.exit_code) from None

    return command


def main() -> None:
    """Run one command line and exit."""
    # transformers warns about torchvision, which nothing here uses, and diffusers about parts that a LoRA leaves alone;
    # workers started from here inherit it.
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        build()(prog_name="sdxl-ray")
    except UserError as error:
        sys.exit(_fail(error, 2))
    except RunError as error:
        sys.exit(_fail(error, 1))


def _fail(error: Exception, code: int) -> int:
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)
    return code


if __name__ == "__main__":
    main()
