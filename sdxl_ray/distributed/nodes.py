"""Nodes: one small question to every node of the cluster, answered by a task that runs there."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from sdxl_ray.errors import UserError
from sdxl_ray.storage import Storage, shown

#: A node that has not answered by then is reported, not waited for.
ANSWER_WITHIN_S = 60.0


@dataclass(frozen=True)
class Node:
    """A node that is alive: Ray's id, its address, whether it is the head, and what it offers."""

    id: str
    address: str
    head: bool
    resources: dict[str, float] = field(hash=False)

    @property
    def label(self) -> str:
        """For people; several nodes may share a machine's address."""
        return f"{self.address} ({self.id[:6]})"


def alive() -> list[Node]:
    """Every node that is alive, the head first."""
    nodes = [
        Node(plain["NodeID"], plain["NodeManagerAddress"], "node:__internal_head__" in resources, resources)
        for plain in ray.nodes()
        if plain["Alive"]
        for resources in [plain["Resources"]]
    ]
    return sorted(nodes, key=lambda node: (not node.head, node.address, node.id))


def ask(nodes: list[Node], question: Callable[..., Any], *words: Any) -> dict[Node, Any]:
    """`question(*words)` on each node at once; where it failed or took too long, the exception is the answer."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(*words): node
        for node in nodes
    }
    ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_WITHIN_S)
    answers: dict[Node, Any] = {}
    for answer, node in asked.items():
        try:
            answers[node] = ray.get(answer, timeout=0)
        except Exception as error:  # whatever a remote node may raise is what there is to say about it
            answers[node] = error
    return answers


def unseen(storage: Storage, nodes: list[Node]) -> list[Node]:
    """Nodes that cannot read and write the storage. Raises UserError where this one cannot."""
    if storage.url is not None:
        return [node for node, seen in ask(nodes, _reaches, storage.url).items() if seen is not True]
    new = not storage.root.exists()
    marker = storage.root / f".seen-{uuid.uuid4().hex}"
    try:
        storage.root.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise UserError(
            f"storage {str(storage.root)!r} cannot be written: {error.strerror}; give another --storage"
        ) from None
    try:
        return [node for node, seen in ask(nodes, _sees, str(marker)).items() if seen is not True]
    finally:
        marker.unlink(missing_ok=True)
        if new:
            with contextlib.suppress(OSError):  # somebody else has begun to use it
                storage.root.rmdir()


def require_shared(storage: Storage) -> None:
    """Raise UserError, before anything starts, when a node of the cluster does not see the storage."""
    nodes = alive()
    blind = unseen(storage, nodes) if len(nodes) > 1 else []
    if blind:
        where = shown(storage.url) if storage.url else str(storage.root)
        names = ", ".join(node.label for node in blind)
        raise UserError(
            f"storage {where!r} is not seen by {len(blind)} of {len(nodes)} nodes ({names}): give a folder that every "
            "node mounts, or a URL that every node reaches (s3://…, gs://…)"
        )


def _sees(marker: str) -> bool:
    """Whether this node sees the file, and can write, read and remove one beside it."""
    if not Path(marker).exists():
        return False
    mine = Path(f"{marker}-{uuid.uuid4().hex}")
    try:
        mine.write_text(mine.name)
        return mine.read_text() == mine.name
    finally:
        mine.unlink(missing_ok=True)


def _reaches(url: str) -> bool:
    """Whether this node can write, read and remove a file in the store."""
    return Storage.of(url).round_trip()
