"""`sdxl-ray serve`: base and tuned models side by side behind HTTP, until Ctrl-C."""

from __future__ import annotations

import contextlib
import shlex
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, Settings, libraries_on_stderr, print_json
from sdxl_ray.errors import UserError
from sdxl_ray.interrupts import keeping

if TYPE_CHECKING:
    from serve.config import ServeConfig
    from serve.replica.placement import Placement

EXAMPLES = (
    "sdxl-ray serve compare",
    "sdxl-ray serve serve/compare.yaml variants.dog=runs/dog/artifact port=8080",
    "sdxl-ray serve --variant dog=runs/dog/artifact --variant toy=runs/toy/artifact",
    "sdxl-ray serve 'cors_origins=[http://localhost:3000]' images.keep_seconds=600",
    "sdxl-ray serve --schema",
    "sdxl-ray serve rayservice.yaml --check",
)


def run(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="a .yaml file, or compare: the embedded base, and your variants")
    ] = "compare",
    settings: Settings = None,
    *,
    variant: Annotated[
        list[str] | None, typer.Option(metavar="NAME=ARTIFACT", help="serve an artifact folder under a name")
    ] = None,
    host: Annotated[str | None, typer.Option(help="address to listen at; beyond loopback it needs API keys")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free one")] = None,
    allow_open: Annotated[bool, typer.Option("--allow-open", help="beyond loopback without API keys")] = False,
    check: Annotated[bool, typer.Option("--check", help="check a file, Ray Serve's own kind too, and stop")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of all settings and exit")] = False,
    json: AsJson = False,
) -> None:
    """Serve base and tuned models: OpenAI's Images API, and a page."""
    if schema:
        from serve.config import ServeConfig

        print_json(ServeConfig.model_json_schema())
        return
    from serve import ray_config
    from serve.http.port import require_free_to_start

    words = [config, *(settings or [])]
    if "=" in config:  # no file: only settings
        config, settings = "compare", words
    if ray_config.is_one(config):
        _check_ray_file(config, check)
        return
    chosen = _configuration(config, settings or [], variant or [], host, port, allow_open)
    if not check:
        require_free_to_start(chosen.host, chosen.port)  # before Ray is imported, which takes seconds

    with libraries_on_stderr():
        from serve.app import require_guarded
        from serve.replica.placement import plan

        require_guarded(chosen)
        layout = plan(chosen)
    if check:
        _show(layout, {name: "ok" for name, store in layout.places.items() if store.group})
        if reasons := [f"variant {name!r}: {store.reason}" for name, store in layout.places.items() if store.reason]:
            raise UserError("; ".join(reasons))
        return
    _serve(chosen, layout, as_json=json)


def _check_ray_file(file: str, check: bool) -> None:
    """Check a file of Ray Serve's own kind. Raises UserError unless `check`: Ray's own command serves such files."""
    from serve import ray_config

    found = ray_config.check(file)
    if not check:
        raise UserError(f"{file!r} is a file for Ray Serve itself: serve deploy {shlex.quote(file)}; it was checked")
    typer.echo(f"{file}: {', '.join(found)}")


def _serve(config: ServeConfig, layout: Placement, *, as_json: bool) -> None:
    """Start the endpoint, print its address, and wait for Ctrl-C."""
    from sdxl_ray.display.progress import Progress

    with libraries_on_stderr():
        from serve.local import running

    states: dict[str, str] = {}
    with contextlib.ExitStack() as endpoint, keeping(lambda: "taking the endpoint down"):
        with libraries_on_stderr(), Progress(sys.stderr) as progress:
            progress.row({"kind": "phase", "name": "starting Ray Serve"})

            def report(now: dict[str, str]) -> None:
                states.update(now)
                ready = sum(state == "ready" for state in now.values())
                progress.row({"kind": "phase", "name": "loading the variants", "done": ready, "total": len(now)})

            notes: list[str] = []
            url = endpoint.enter_context(running(config, layout=layout, on_state=report, on_note=notes.append))
        for note in notes:
            typer.echo(note, err=True)
        if as_json:
            print_json(
                {
                    "url": url,
                    "variants": {n: {**asdict(p), "state": states.get(n, "unknown")} for n, p in layout.places.items()},
                }
            )
        else:
            _show(layout, states)
            typer.echo(f"page  {url}/\nAPI   {url}/v1  (OpenAI Images; {url}/openapi.json)\nCtrl-C takes it down")
        sys.stdout.flush()
        threading.Event().wait()


def _configuration(
    name: str, settings: list[str], variants: list[str], host: str | None, port: int | None, allow_open: bool
) -> ServeConfig:
    """The file with the command line's changes."""
    from sdxl_ray.config.recipe import parse_assignments
    from serve.config import load, override

    changed = override(load(name), parse_assignments(settings))
    # As one section: a variant's name may have dots, which a path would lead through.
    named: dict[str, str] = {}
    for word in variants:
        key, equals, folder = word.partition("=")
        if not equals or not folder:
            raise UserError(f"--variant {word!r}: write NAME=ARTIFACT, for example dog=runs/dog/artifact")
        named[key] = folder
    given = {"variants": named or None, "host": host, "port": port, "allow_open": allow_open or None}
    return override(changed, {key: value for key, value in given.items() if value is not None})


def _show(layout: Placement, states: dict[str, str]) -> None:
    """Each variant, its state, and what it is or why it is stopped."""
    for name, store in layout.places.items():
        what = store.reason or (f"artifact {store.artifact[:12]}" if store.artifact else "")
        typer.echo(f"{name:<20} {states.get(name, 'stopped'):<8} {store.kind:<7} {what}".rstrip())
