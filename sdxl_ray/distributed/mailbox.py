"""Mailbox: carries progress rows from a run's first worker to the command that waits for the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sdxl_ray.errors import RunError

Row = dict[str, Any]


@ray.remote(num_cpus=0, max_concurrency=2)
class Mailbox:
    """Rows in the order they were put; taking empties it."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._refused = ""

    def put(self, row: Row) -> None:
        """Append a row. Raises RunError once nobody wants any."""
        if self._refused:
            raise RunError(self._refused)
        self._rows.append(row)

    def refuse(self, reason: str) -> None:
        """Let whoever puts the next row know that the run is of no use any more."""
        self._refused = reason

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
    """Inside, a thread gives every row of the mailbox to `on_row`; on leaving, the last ones are given too.

    What `on_row` raises is told to whoever fills the mailbox, and raised on leaving.
    """
    stop, failed = threading.Event(), list[Exception]()

    def deliver() -> None:
        try:
            while not stop.wait(every_s):
                for row in ray.get(mailbox.take.remote()):
                    on_row(row)
        except Exception as error:  # whatever it is: this thread has nobody who would hear of it
            failed.append(error)
            mailbox.refuse.remote(str(error))

    thread = threading.Thread(target=deliver, name="mailbox", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if failed:
            raise failed[0]
        for row in ray.get(mailbox.take.remote()):
            on_row(row)
