"""A stage: one thread that takes what has come in, some at a time, and works on it off the event loop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Stage(Generic[T]):
    """Calls `work(items)` with 1 to `most` waiting items; what it raises goes to `fail(items, error)`."""

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[T]], None],
        fail: Callable[[Sequence[T], BaseException], None],
        most: int,
    ) -> None:
        self._work, self._fail, self._most = work, fail, most
        self._queue: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still takes what is put."""
        return self._thread.is_alive()

    def put(self, item: T) -> None:
        """From any thread."""
        self._queue.put(item)

    def stop(self) -> None:
        """Work off what is there, then end; waits for it."""
        self._queue.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            items = [item]
            while len(items) < self._most and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    self._queue.put(None)
                    break
                items.append(following)
            try:
                self._work(items)
            except Exception as error:
                self._fail(items, error)
