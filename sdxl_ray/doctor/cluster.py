"""Doctor of a cluster: what every node has, whether they agree, what they reach, and who may use them.

    found = examine_cluster("10.0.0.1:6379", Storage.of("s3://bucket/runs"))
    for finding in found.findings:
        print(finding.state, finding.name, finding.value, finding.fix)

Each node is asked by one small task of its own; the cluster is left as it was.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from sdxl_ray.display.units import bytes_text
from sdxl_ray.distributed._ray_private import dashboard_url
from sdxl_ray.doctor.machine import MISSING, PACKAGES, Finding, package, required
from sdxl_ray.io.storage import Storage, shown
from sdxl_ray.plan.container_memory import container_memory_bytes
from sdxl_ray.plan.gpu_driver import Gpu, gpus_here

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

    from sdxl_ray.distributed.capacity import ClusterCapacity, NodeKind
    from sdxl_ray.distributed.nodes import Node

#: Different ones on two nodes: pickles and collectives of one are not those of the other.
_MUST_AGREE = ("python", "ray", "torch", "deepspeed", "diffusers", "transformers", "peft")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class NodeFacts:
    """What a node says about itself. memory_bytes: that its container may use; auth: RAY_AUTH_MODE of its processes."""

    versions: dict[str, str]
    gpus: tuple[Gpu, ...]
    memory_bytes: int
    auth: str


@dataclass(frozen=True)
class Examined:
    """Everything there is to say about a cluster, and what its workers would train on.

    answered: nodes that said what they have; memory_bytes: what a worker on any of them can count on; more_gpus: there
    is no GPU, but an autoscaler that may add some.
    """

    findings: list[Finding]
    gpus: list[Gpu]
    answered: int
    memory_bytes: int
    more_gpus: bool


def examine_cluster(address: str, storage: Storage) -> Examined:
    """Look at the cluster at an address. Raises UserError when none answers there."""
    from sdxl_ray.distributed.capacity import ClusterCapacity
    from sdxl_ray.distributed.cluster import connected
    from sdxl_ray.distributed.nodes import alive, ask, unseen

    with connected(address, 0):
        nodes = alive()
        answers = ask(nodes, about_this_node)
        able = {node: answer for node, answer in answers.items() if isinstance(answer, NodeFacts)}
        reported = {node.label: answer for node, answer in able.items()}
        capacity = ClusterCapacity.now()
        gpus = [gpu for answer in reported.values() for gpu in answer.gpus]
        findings = [
            Finding("nodes", f"{len(nodes)}, {_amount(nodes, 'CPU')} CPUs, {_amount(nodes, 'GPU')} GPUs"),
            *(_node(node, answer) for node, answer in answers.items()),
            *autoscaler(capacity),
            *versions(reported),
            _storage(storage, nodes, unseen(storage, nodes)),
            authentication(reported),
            dashboard(_dashboard_host()),
        ]
    more = not gpus and capacity.grows and (capacity.declared is None or capacity.has("GPU"))
    return Examined(findings, gpus, len(able), least_memory(able), more)


def about_this_node() -> NodeFacts:
    """Runs on a node."""
    import psutil

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = MISSING
    whole = psutil.virtual_memory().total
    memory = min(whole, container_memory_bytes() or whole)
    return NodeFacts(found, tuple(gpus_here()), memory, os.environ.get("RAY_AUTH_MODE", "").lower())


def least_memory(able: Mapping[Node, NodeFacts]) -> int:
    """Bytes that each worker can count on, one on each node; nodes on one machine share what it has."""
    sharing = Counter(node.address for node in able)
    return min((answer.memory_bytes // sharing[node.address] for node, answer in able.items()), default=0)


def autoscaler(capacity: ClusterCapacity) -> Iterator[Finding]:
    """What an autoscaler may add, where there is one."""
    if not capacity.grows:
        return
    if capacity.declared is None:
        fix = "resources.gpus_per_worker=1 waits for GPUs; after `ray up`, ask on the head: its file is there"
        yield Finding("autoscaler", "adds nodes; how many, and what they have, is not known here", "note", fix)
        return
    most = f"the cluster may grow to {', '.join(map(_kind, capacity.declared))}"
    if capacity.has("GPU") and not any(kind.offers.get("GPU") for kind in capacity.live):
        fix = "a run waits for GPUs that are not there yet; what fits on them: sdxl-ray plan RECIPE --gpu NAME"
        yield Finding("autoscaler", most, "note", fix)
    else:
        yield Finding("autoscaler", most)


def versions(reported: dict[str, NodeFacts]) -> Iterator[Finding]:
    """One finding for each package missing, outside its range or not the same everywhere, and one for the others."""
    same = []
    ranges = required()
    for name in dict.fromkeys((*_MUST_AGREE, *PACKAGES)):
        by_version: dict[str, list[str]] = {}
        for address, answer in reported.items():
            by_version.setdefault(answer.versions.get(name, MISSING), []).append(address)
        found = list(_outside(name, by_version, len(reported), ranges.get(name)))
        yield from found
        if name in _MUST_AGREE and len(by_version) > 1:
            text = "; ".join(f"{version} on {', '.join(where)}" for version, where in sorted(by_version.items()))
            yield Finding(f"{name} versions", text, "broken", "one image, or the same setup commands, on every node")
        elif name in _MUST_AGREE and not found:
            same += [f"{name} {version}" for version in by_version]
    if same:
        yield Finding("versions", f"the same on every node: {', '.join(same)}")


def _outside(
    name: str, by_version: dict[str, list[str]], nodes: int, allowed: SpecifierSet | None
) -> Iterator[Finding]:
    if allowed is None:
        return
    for version, where in sorted(by_version.items()):
        found = package(name, version, allowed)
        if found.state != "ok":
            on = "every node" if len(where) == nodes else ", ".join(where)
            yield Finding(name, f"{version} on {on}", found.state, f"there: {found.fix}")


def authentication(reported: dict[str, NodeFacts]) -> Finding:
    """Whether every node's processes were started with token authentication."""
    without = sorted(address for address, answer in reported.items() if answer.auth not in ("token", "k8s"))
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


def _node(node: Any, answer: NodeFacts | Exception) -> Finding:
    name = f"{'head' if node.head else 'node'} {node.label}"
    if not isinstance(answer, NodeFacts):
        what = f"{type(answer).__name__}: {answer}".strip().splitlines()
        fix = "install this project on the node, or send it with ray job submit --working-dir ."
        return Finding(name, f"cannot say what it has ({what[0]})", "broken", fix)
    cards = [f"{gpu.name} {bytes_text(gpu.memory_mib * 2**20)}" for gpu in answer.gpus]
    cpus = int(node.resources.get("CPU", 0))
    return Finding(name, f"{cpus} CPUs, {bytes_text(answer.memory_bytes)}, {', '.join(cards) or 'no GPU'}")


def _storage(storage: Storage, nodes: list[Node], blind: dict[Node, str]) -> Finding:
    from sdxl_ray.distributed.nodes import named

    where = shown(storage.url) if storage.url else str(storage.root)
    if not blind:
        return Finding("storage", f"{where}: seen by every node")
    fix = "a folder that every node mounts, or a URL that every node reaches: --storage s3://bucket/runs"
    return Finding(
        "storage", f"{where}: not seen by {len(blind)} of {len(nodes)} nodes ({named(blind)})", "broken", fix
    )


def _kind(kind: NodeKind) -> str:
    offers = [f"{kind.offers[name]:g} {name}s" for name in ("CPU", "GPU") if kind.offers.get(name)]
    many = "any number of nodes" if kind.count is None else "1 node" if kind.count == 1 else f"{kind.count} nodes"
    return f"{many} with {' and '.join(offers) or 'no CPU'}"


def _amount(nodes: list[Any], resource: str) -> int:
    return int(sum(node.resources.get(resource, 0) for node in nodes))


def _dashboard_host() -> str | None:
    """The host that the head's dashboard was started on, as the cluster's own table says."""
    url = dashboard_url()
    return url.rpartition(":")[0].removeprefix("http://").strip("[]") if url else None
