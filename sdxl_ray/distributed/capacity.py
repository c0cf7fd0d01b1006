"""Room: how many workers fit on the nodes of the connected cluster, and on those that its autoscaler may add.

    room = Room.now()
    room.workers({"CPU": 4, "GPU": 1})     # None: an autoscaler adds nodes, and nothing here says how many

The most that an autoscaler adds is known where the platform reports it to Ray, and to the head of a cluster that
`ray up` started. Only Kubernetes knows KubeRay's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
import yaml

from sdxl_ray.distributed._ray_private import autoscaler_status, node_groups
from sdxl_ray.distributed.nodes import alive

NodeResources = Mapping[str, float]

#: Where `ray up` leaves its file on the head.
LAUNCHER_FILE = "~/ray_bootstrap_config.yaml"
#: What Ray's monitor calls the node types of a cluster without an autoscaler: one for each node.
_ANONYMOUS = ("node_", "local.cluster.node")
#: The label of a node that a launcher started as one of its types.
_TYPE_LABEL = "ray.io/node-group"


@dataclass(frozen=True)
class NodeKind:
    """Nodes that are alike: what each offers, and how many there are at most. None: unknown."""

    offers: NodeResources
    count: int | None

    def workers(self, need: NodeResources) -> int | None:
        """How many workers that need this fit on all of them. A worker is on one node."""
        each = min(int(self.offers.get(name, 0) // amount) for name, amount in need.items() if amount)
        return 0 if not each else None if self.count is None else each * self.count


@dataclass(frozen=True)
class ClusterCapacity:
    """live: nodes that are there. grows: whether an autoscaler adds some; declared: those that it may have, or None."""

    live: tuple[NodeKind, ...]
    grows: bool = False
    declared: tuple[NodeKind, ...] | None = None

    @classmethod
    def now(cls) -> Self:
        """Of the cluster that is connected."""
        nodes = alive()
        live = tuple(NodeKind(node.resources, 1) for node in nodes)
        reported = _reported()
        grows = (
            bool(reported)
            or named_types(autoscaler_status())
            or any(_TYPE_LABEL in node.get("Labels", {}) for node in ray.nodes())
        )
        if not grows:
            return cls(live)
        head = tuple(NodeKind(node.resources, 1) for node in nodes if node.head)
        workers = reported or launched(Path(LAUNCHER_FILE).expanduser())
        return cls(live, True, None if workers is None else head + workers)

    @classmethod
    def here(cls) -> Self:
        """Of this process's node alone."""
        mine = ray.get_runtime_context().get_node_id()
        return cls(tuple(NodeKind(node.resources, 1) for node in alive() if node.id == mine))

    def has(self, name: str) -> bool:
        """Whether any node has some of a resource, or may have."""
        return any(kind.offers.get(name, 0) for kind in (*self.live, *(self.declared or ())))

    def workers(self, need: NodeResources) -> int | None:
        """How many workers fit, once the autoscaler has added what it may. None: it may add an unknown number."""
        if self.grows and self.declared is None:
            return None
        counts = [kind.workers(need) for kind in (self.declared if self.declared is not None else self.live)]
        return None if None in counts else sum(count or 0 for count in counts)

    def total(self, name: str) -> float:
        """All of a resource that the nodes have which are counted."""
        kinds = self.declared if self.declared is not None else self.live
        return sum(kind.offers.get(name, 0) * (kind.count or 1) for kind in kinds)

    def largest(self, name: str) -> float:
        """The most of a resource on one node."""
        kinds = self.declared if self.declared is not None else self.live
        return max((kind.offers.get(name, 0) for kind in kinds), default=0)


def named_types(status: bytes | None) -> bool:
    """Whether the status that Ray's monitor publishes is that of an autoscaler with node types of its own."""
    report: dict[str, Any] = (json.loads(status).get("autoscaler_report") if status else None) or {}
    # A head that the autoscaler has not counted yet is in the mapping already.
    mapping = report.get("node_type_mapping") or {}
    types = [*report.get("active_nodes", {}), *report.get("pending_launches", {}), *mapping.values()]
    return any(not name.startswith(_ANONYMOUS) for name in types)


def launched(file: Path) -> tuple[NodeKind, ...] | None:
    """The worker types of a launcher's file; None where there is none to be read."""
    try:
        plain = yaml.safe_load(  # YAML 1.1, as Ray's launcher has read the same file
            file.read_text(encoding="utf-8")
        )
        most = int(plain["max_workers"])
        return tuple(
            NodeKind(one["resources"], min(most, int(one.get("max_workers", most))))
            for name, one in plain["available_node_types"].items()
            if name != plain["head_node_type"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None


def _reported() -> tuple[NodeKind, ...] | None:
    """The groups of worker nodes that the platform reported to Ray; -1 nodes: no limit."""
    groups = [one for one in node_groups() if one.max_count]
    kinds = tuple(NodeKind(dict(one.resources), None if one.max_count < 0 else one.max_count) for one in groups)
    return kinds or None
