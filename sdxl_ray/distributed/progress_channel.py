"""Progress channel: carries a run's progress rows from its first worker to the command that waits for the run.

It also holds the run's fatal error, which no restart could mend. An actor and not a file, because the disk or the
storage may be what failed. `ray.util.queue.Queue` has no place for that error, which `put` must raise in the workers.
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
    """Rows in the order they were put; `take` removes them."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._fatal: Exception | None = None

    def put(self, row: Row) -> None:
        """Append a row. Raises the run's fatal error once there is one."""
        if self._fatal is not None:
            raise self._fatal
        self._rows.append(row)

    def fail(self, error: Exception) -> None:
        """Record the run's fatal error. Later calls are ignored."""
        self._fatal = self._fatal or error

    def fatal_error(self) -> Exception | None:
        """The run's fatal error."""
        return self._fatal

    def take(self) -> list[Row]:
        """Every row since the last call."""
        rows, self._rows = self._rows, []
        return rows


def open_channel() -> Any:
    """A channel on the node of the calling process: on another one it would be lost with that node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ProgressChannel.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # added by ray.remote


def send_fatal_error(channel: Any, error: Exception) -> None:
    """Record the fatal error for the driver, and for workers that Ray restarts nevertheless."""
    with contextlib.suppress(ray.exceptions.RayError):  # lost with the driver's node: there is no one to report to
        ray.get(channel.fail.remote(error))


def fatal_error(channel: Any) -> Exception | None:
    """The fatal error of this channel's run, or None."""
    with contextlib.suppress(ray.exceptions.RayError):
        found: Exception | None = ray.get(channel.fatal_error.remote())
        return found
    return None


@contextmanager
def forwarded(channel: Any, on_row: Callable[[Row], None], every_s: float = 0.25) -> Iterator[None]:
    """Inside, a thread passes every row to `on_row`; the last ones on exit.

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
            channel.fail.remote(RunError(str(error)))

    thread = threading.Thread(target=deliver, name="progress", daemon=True)
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
