"""Doctor of a cluster: what every node has, whether they agree, what they reach, and who may use them.

    findings, gpus, nodes = examine_cluster("10.0.0.1:6379", Storage.of("s3://bucket/runs"))

Each node is asked by one small task of its own; the cluster is left as it was.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from sdxl_ray.display.units import bytes_text
from sdxl_ray.distributed.doctor import FLOORS, Finding
from sdxl_ray.plan.driver import Gpu, gpus_here
from sdxl_ray.storage import Storage

#: Different ones on two nodes: pickles and collectives of one are not those of the other.
_MUST_AGREE = ("python", "ray", "torch", "deepspeed", "diffusers", "transformers", "peft")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Answer:
    """What a node says about itself. auth: RAY_AUTH_MODE of its processes."""

    versions: dict[str, str]
    gpus: tuple[Gpu, ...]
    memory_bytes: int
    auth: str


def examine_cluster(address: str, storage: Storage) -> tuple[list[Finding], list[Gpu], int]:
    """Everything there is to say about the cluster at an address; its GPUs; how many nodes it has.

    Raises UserError when no cluster answers there.
    """
    from sdxl_ray.distributed.cluster import connected
    from sdxl_ray.distributed.nodes import alive, ask, unseen

    with connected(address, 0):
        nodes = alive()
        answers = ask(nodes, about_this_node)
        told = {node.label: answer for node, answer in answers.items() if isinstance(answer, Answer)}
        gpus = [gpu for answer in told.values() for gpu in answer.gpus]
        findings = [
            Finding("nodes", f"{len(nodes)}, {_amount(nodes, 'CPU')} CPUs, {_amount(nodes, 'GPU')} GPUs"),
            *(_node(node, answer) for node, answer in answers.items()),
            *versions(told),
            _storage(storage, nodes, unseen(storage, nodes)),
            authentication(told),
            dashboard(_dashboard_host()),
        ]
    return findings, gpus, len(nodes)


def about_this_node() -> Answer:
    """Runs on a node."""
    import psutil

    found = {"python": platform.python_version()}
    for package in FLOORS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return Answer(found, tuple(gpus_here()), psutil.virtual_memory().total, os.environ.get("RAY_AUTH_MODE", "").lower())


def versions(told: dict[str, Answer]) -> Iterator[Finding]:
    """One finding for the packages that all nodes agree on, and one for each that they do not."""
    differing = [
        name for name in _MUST_AGREE if len({answer.versions.get(name, "missing") for answer in told.values()}) > 1
    ]
    for name in differing:
        by_version: dict[str, list[str]] = {}
        for address, answer in told.items():
            by_version.setdefault(answer.versions.get(name, "missing"), []).append(address)
        text = "; ".join(f"{version} on {', '.join(where)}" for version, where in sorted(by_version.items()))
        yield Finding(f"{name} versions", text, "broken", "one image, or the same setup commands, on every node")
    if told and not differing:
        first = next(iter(told.values())).versions
        same = ", ".join(f"{name} {first[name]}" for name in _MUST_AGREE)
        yield Finding("versions", f"the same on every node: {same}")


def authentication(told: dict[str, Answer]) -> Finding:
    """Whether every node's processes were started with token authentication."""
    without = sorted(address for address, answer in told.items() if answer.auth not in ("token", "k8s"))
    if not without:
        return Finding("authentication", "token, on every node")
    return Finding(
        "authentication",
        f"none on {', '.join(without)}: whoever reaches the cluster's ports runs code on it",
        "unsafe",
        "`ray get-auth-token --generate` once, then RAY_AUTH_MODE=token and that token on every node before ray start",
    )


def dashboard(host: str | None) -> Finding:
    """Where the dashboard, which takes jobs, listens. host: as it was started, None without a dashboard."""
    if host is None:
        return Finding("dashboard", "none: jobs cannot be submitted", "note", "start the head with the dashboard")
    if host in _LOOPBACK:
        return Finding("dashboard", "on loopback only")
    fix = "start the head with --dashboard-host=127.0.0.1 and reach it through SSH, or let a firewall choose who may"
    return Finding("dashboard", f"open at {host}: whoever reaches it sees everything and sends jobs", "unsafe", fix)


def _node(node: Any, answer: Answer | Exception) -> Finding:
    name = f"{'head' if node.head else 'node'} {node.label}"
    if not isinstance(answer, Answer):
        what = f"{type(answer).__name__}: {answer}".strip().splitlines()
        fix = "install this project on the node, or send it with ray job submit --working-dir ."
        return Finding(name, f"cannot say what it has ({what[0]})", "broken", fix)
    cards = [f"{gpu.name} {bytes_text(gpu.memory_mib * 2**20)}" for gpu in answer.gpus]
    cpus = int(node.resources.get("CPU", 0))
    return Finding(name, f"{cpus} CPUs, {bytes_text(answer.memory_bytes)}, {', '.join(cards) or 'no GPU'}")


def _storage(storage: Storage, nodes: list[Any], blind: list[Any]) -> Finding:
    where = storage.url or str(storage.root)
    if not blind:
        return Finding("storage", f"{where}: seen by every node")
    names = ", ".join(node.label for node in blind)
    fix = "a folder that every node mounts, or a URL that every node reaches: --storage s3://bucket/runs"
    return Finding("storage", f"{where}: not seen by {len(blind)} of {len(nodes)} nodes ({names})", "broken", fix)


def _amount(nodes: list[Any], resource: str) -> int:
    return int(sum(node.resources.get(resource, 0) for node in nodes))


def _dashboard_host() -> str | None:
    """The host that the head's dashboard was started on, as the cluster's own table says."""
    from ray._private.services import get_webui_url_from_internal_kv

    url = get_webui_url_from_internal_kv()
    return url.rpartition(":")[0].removeprefix("http://").strip("[]") if url else None
