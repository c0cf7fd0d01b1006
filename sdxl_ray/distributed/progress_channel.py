"""Mailbox: carries progress rows from a run's first worker to the command that waits for the run.

It knows too why a run ends that no restart could help, whoever found out: in it, and not in a file, since what is wrong
may be the disk or the store.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sdxl_ray.errors import RunError
from sdxl_ray.io.rows import Row


@ray.remote(num_cpus=0, max_concurrency=2)
class ProgressChannel:
    """Rows in the order they were put; taking empties it."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._fatal: Exception | None = None

    def put(self, row: Row) -> None:
        """Append a row. Raises what the run ends of, once that is known."""
        if self._fatal is not None:
            raise self._fatal
        self._rows.append(row)

    def send_fatal_error(self, error: Exception) -> None:
        """Record the run's fatal error. Later calls are ignored."""
        self._fatal = self._fatal or error

    def fatal_slot(self) -> Exception | None:
        """What the run ends of."""
        return self._fatal

    def take(self) -> list[Row]:
        """Every row since the last call."""
        rows, self._rows = self._rows, []
        return rows


def open_channel() -> Any:
    """A mailbox on the node of the process that asks for it: on another one it would be lost with that node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ProgressChannel.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # added by ray.remote


def send_fatal_error(channel: Any, error: Exception) -> None:
    """Write down why no restart can help, for the driver and for the workers that are started again nevertheless."""
    with contextlib.suppress(ray.exceptions.RayError):  # lost with the driver's node: there is no one to report to
        ray.get(channel.send_fatal.remote(error))


def fatal_error(channel: Any) -> Exception | None:
    """What the run of this mailbox ends of, if it does."""
    with contextlib.suppress(ray.exceptions.RayError):
        found: Exception | None = ray.get(channel.fatal_slot.remote())
        return found
    return None


@contextmanager
def forwarded(channel: Any, on_row: Callable[[Row], None], every_s: float = 0.25) -> Iterator[None]:
    """Inside, a thread gives every row of the mailbox to `on_row`; on leaving, the last ones are given too.

    An exception of `on_row` is sent to the workers and raised here on exit.
    """
    stop, failed = threading.Event(), list[Exception]()

    def deliver() -> None:
        try:
            while not stop.wait(every_s):
                for row in ray.get(channel.take.remote()):
                    on_row(row)
        except Exception as error:  # whatever it is: an exception in this thread would be lost
            failed.append(error)
            channel.send_fatal.remote(RunError(str(error)))

    thread = threading.Thread(target=deliver, name="mailbox", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if failed:
            raise failed[0]
        for row in ray.get(channel.take.remote()):
            on_row(row)
