"""Nodes: one small question to every node of the cluster, answered by a task that runs there."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from sdxl_ray.distributed._ray_private import HEAD_RESOURCE
from sdxl_ray.errors import UserError
from sdxl_ray.io.storage import Storage, shown
from sdxl_ray.io.storage.deadline import cause

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
        Node(plain["NodeID"], plain["NodeManagerAddress"], HEAD_RESOURCE in resources, resources)
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


def unseen(storage: Storage, nodes: list[Node]) -> dict[Node, str]:
    """Nodes that cannot read and write the storage, and why, where they say so. Raises UserError where this one cannot.

    The folder of a path is made for as long as the nodes look for it.
    """
    if storage.url is not None:
        return _blind(ask(nodes, _reaches, storage.url))
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
        return _blind(ask(nodes, _sees, str(marker)))
    finally:
        marker.unlink(missing_ok=True)
        if new:
            with contextlib.suppress(OSError):  # somebody else has begun to use it
                storage.root.rmdir()


def named(blind: dict[Node, str]) -> str:
    """The nodes of `unseen`, and what the first of them said that said something."""
    names = ", ".join(node.label for node in blind)
    why = next(filter(None, blind.values()), "")
    return f"{names}; {why}" if why else names


def require_shared(storage: Storage) -> None:
    """Raise UserError, before anything starts, when a node of the cluster does not see the storage."""
    nodes = alive()
    blind = unseen(storage, nodes) if len(nodes) > 1 else {}
    if blind:
        where = shown(storage.url) if storage.url else str(storage.root)
        raise UserError(
            f"storage {where!r} is not seen by {len(blind)} of {len(nodes)} nodes ({named(blind)}): give a folder that "
            "every node mounts, or a URL that every node reaches (s3://…, gs://…)"
        )


def _blind(answers: dict[Node, Any]) -> dict[Node, str]:
    return {node: _why(answer) for node, answer in answers.items() if answer is not True}


def _why(answer: Any) -> str:
    """What a node said that did not answer True: a line of its own error, not of Ray's."""
    if isinstance(answer, ray.exceptions.GetTimeoutError):
        return f"no answer in {ANSWER_WITHIN_S:g} s"
    return cause(getattr(answer, "cause", answer)) if isinstance(answer, Exception) else ""


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
