"""`sdxl-ray doctor`: what this machine or a cluster can do, and what is unsafe about it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from sdxl_ray.cli.arguments import AsJson, StorageAt, libraries_on_stderr, print_json
from sdxl_ray.cli.devices import cpu_here, gpu_here

if TYPE_CHECKING:
    from sdxl_ray.doctor.machine import Finding
    from sdxl_ray.plan import Device

EXAMPLES = (
    "sdxl-ray doctor",
    "sdxl-ray doctor --address 10.0.0.1:6379 --storage s3://bucket/runs",
    "sdxl-ray doctor --file cluster/aws.yaml --file cluster/kuberay-jobs.yaml",
)


def run(
    storage: StorageAt = "runs",
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="look at this Ray cluster instead: auto or host:port")
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="only check this file for Ray's launcher, KubeRay, Ray Serve or a job, key by key"
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Say what this machine or a cluster can do, and what is unsafe. Exit 1 when something is broken."""
    if file:
        _files(file, json)
        return
    from sdxl_ray.doctor.machine import examine, summary

    if address is None:
        findings = examine(storage)
        fits = _what_fits(gpu_here(), workers=1)
    else:
        findings, fits = _cluster(address, storage)
    if json:
        print_json(summary(findings) | {"can_train": fits})
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            state = "" if finding.state == "ok" else finding.state
            typer.echo(f"{state:<6}  {finding.name:<{width}}  {finding.value}")
            if finding.fix:
                typer.echo(f"{'':<6}  {'':<{width}}  -> {finding.fix}")
        typer.echo("\n" + "\n".join(fits))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def _files(paths: list[str], json: bool) -> None:
    """Check each file, and say what it holds and what could not be checked."""
    from sdxl_ray.doctor.cluster_files import checked
    from serve import ray_config

    reported = {}
    with libraries_on_stderr():
        for path in paths:
            serves = ray_config.check(path) if ray_config.is_one(path) else []
            held = checked(path)
            parts = [*(f"application {name}" for name in serves), *held.parts]
            reported[path] = {"holds": parts, "not_checked": held.unchecked}
    if json:
        print_json(reported)
        return
    for path, said in reported.items():
        unchecked = f" (not checked: {'; '.join(said['not_checked'])})" if said["not_checked"] else ""
        typer.echo(f"{path}: {', '.join(said['holds'])}{unchecked}")


def _cluster(address: str, storage: str) -> tuple[list[Finding], list[str]]:
    """What there is to say about a cluster, and what it can train with a worker on each of its GPUs (or nodes)."""
    from sdxl_ray.doctor.cluster import examine_cluster
    from sdxl_ray.io.storage import Storage
    from sdxl_ray.plan import CPU
    from sdxl_ray.plan.devices import card

    with libraries_on_stderr():
        found = examine_cluster(address, Storage.of(storage))
    if not found.answered:
        return found.findings, ["what can be trained is not known: no node said what it has"]
    if found.gpus:
        smallest = min(found.gpus, key=lambda gpu: gpu.memory_mib)
        return found.findings, _what_fits(card(smallest), workers=len(found.gpus))
    fits = _what_fits(replace(CPU, memory_bytes=found.memory_bytes), workers=found.answered)
    if found.more_gpus:
        fits.append(
            "this is for the nodes that are there now; the autoscaler may add GPUs: sdxl-ray plan RECIPE --gpu NAME"
        )
    return found.findings, fits


def _what_fits(device: Device | None, workers: int) -> list[str]:
    """One line per shipped recipe: whether that many workers can train it, each on such a device, or what lacks.

    device: None for this machine's CPU.
    """
    from sdxl_ray.config import recipe as recipe_files
    from sdxl_ray.plan import DoesNotFit, Plan

    lines = []
    how_many = "one worker" if workers == 1 else f"{workers} workers"
    for name in recipe_files.names():
        recipe = recipe_files.override(recipe_files.load(name), {"parallel.workers": workers})
        on = device or cpu_here()
        try:
            Plan.of(recipe, on).check()
            lines.append(f"can train    {name} ({how_many} on {on.name})")
        except DoesNotFit as error:
            lines.append(f"cannot train {name}: {error}")
    return lines
