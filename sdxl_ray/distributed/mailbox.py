"""Mailbox: carries progress rows from a run's first worker to the command that waits for the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Row = dict[str, Any]


@ray.remote(num_cpus=0, max_concurrency=2)
class Mailbox:
    """Rows in the order they were put; taking empties it."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def put(self, row: Row) -> None:
        """Append a row."""
        self._rows.append(row)

    def take(self) -> list[Row]:
        """Every row since the last call."""
        rows, self._rows = self._rows, []
        return rows


def open_mailbox() -> Any:
    """A mailbox on the node of the process that asks for it: on another one it would be lost with that node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # added by ray.remote


@contextmanager
def delivered(mailbox: Any, on_row: Callable[[Row], None], every_s: float = 0.25) -> Iterator[None]:
    """Inside, a thread gives every row of the mailbox to `on_row`; on leaving, the last ones are given too."""
    stop = threading.Event()

    def deliver() -> None:
        while not stop.wait(every_s):
            for row in ray.get(mailbox.take.remote()):
                on_row(row)

    thread = threading.Thread(target=deliver, name="mailbox", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for row in ray.get(mailbox.take.remote()):
            on_row(row)
