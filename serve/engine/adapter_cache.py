"""Which adapters are on the device: loaded when first needed, kept as long as there is room or an image uses them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdxl_ray.errors import UserError, nearest
from sdxl_ray.io.artifact import Artifact
from serve.engine.adapter import LoadedAdapter
from serve.engine.request import NotDrawable


@dataclass(eq=False)
class CachedAdapter:
    """An adapter on the device, or one being loaded. pins: images that use it."""

    loading: asyncio.Task[LoadedAdapter]
    pins: int = 0


class AdapterCache:
    """All methods run on one event loop, so none needs a lock; loading itself runs in threads."""

    def __init__(
        self, load: Callable[[str, Artifact], LoadedAdapter], most: int, on_evicted: Callable[[], None] = lambda: None
    ) -> None:
        """load(name, artifact): blocking; most: adapters resident at a time; on_gone: called when one has left."""
        self._load, self._most, self._on_evicted = load, most, on_evicted
        self._entries: OrderedDict[str, CachedAdapter] = OrderedDict()  # by hash, least recently used first
        self._turn = asyncio.Lock()  # first come, first served; without it a popular adapter would starve the others
        self._freed = asyncio.Event()
        self._closed: BaseException | None = None
        self.known: dict[str, Artifact] = {}
        self.loads = 0
        self.evictions = 0

    @property
    def cached(self) -> list[LoadedAdapter]:
        """Loaded adapters, least recently used first."""
        done = [entry.loading for entry in self._entries.values() if entry.loading.done()]
        return [task.result() for task in done if not task.cancelled() and task.exception() is None]

    def named(self, name: str) -> Artifact:
        """Raises UserError for a name nobody has added."""
        if name not in self.known:
            raise UserError(f"adapter {name!r}: {nearest(name, self.known) if self.known else 'there are none here'}")
        return self.known[name]

    async def acquire(self, names: Sequence[str]) -> list[LoadedAdapter]:
        """The adapters, each pinned once per name until `release`. Waits while all room is taken by pinned ones."""
        if not names:  # the base never waits for room
            return []
        artifacts = {name: self.named(name) for name in names}
        needed = {artifact.hash: name for name, artifact in artifacts.items()}
        if len(needed) > self._most:
            raise NotDrawable(
                "adapters", f"{len(needed)} adapters in one image, but at most {self._most} fit: name fewer"
            )
        async with self._turn:
            while self._closed is None and not self._evict(needed):
                self._freed.clear()
                await self._freed.wait()
            if self._closed is not None:
                raise self._closed
            entries = [self._entry(artifacts[name], name) for name in names]
            for entry in entries:
                entry.pins += 1
        try:
            # Shielded: when this caller gives up, others may be waiting for the same adapter.
            return [await asyncio.shield(entry.loading) for entry in entries]
        except BaseException:
            self.release([artifacts[name].hash for name in names])
            raise

    def release(self, hashes: Sequence[str]) -> None:
        """Take back one pin of each."""
        for one in hashes:
            entry = self._entries[one]
            entry.pins -= 1
            failed = entry.loading.done() and (entry.loading.cancelled() or entry.loading.exception() is not None)
            if entry.pins == 0 and (failed or all(one != artifact.hash for artifact in self.known.values())):
                self._drop(one)  # could not be loaded, or was removed while in use
        self._freed.set()

    def close(self, reason: BaseException) -> None:
        """Whoever waits for room, now or later, gets `reason` instead."""
        self._closed = reason
        self._freed.set()

    def remove(self, name: str) -> None:
        """Forget a name; its adapter goes with the last image that uses it."""
        one = self.named(name).hash
        del self.known[name]
        entry = self._entries.get(one)
        if entry is not None and entry.pins == 0 and all(one != artifact.hash for artifact in self.known.values()):
            self._drop(one)
            self._freed.set()

    def _evict(self, needed: dict[str, str]) -> bool:
        """Let unpinned adapters go until the missing ones have room; whether they have."""
        missing = len(needed.keys() - self._entries.keys())
        idle = [one for one, entry in self._entries.items() if entry.pins == 0 and one not in needed]
        surplus = len(self._entries) + missing - self._most
        if surplus > len(idle):
            return False
        for one in idle[: max(surplus, 0)]:
            self._drop(one)
            self.evictions += 1
        return True

    def _drop(self, one: str) -> None:
        """Drop an adapter that no image uses, and notify whoever still holds its matrices."""
        loading = self._entries.pop(one).loading
        if loading.done() and not loading.cancelled() and loading.exception() is None:
            loading.result().evicted.set()
            self._on_evicted()

    def _entry(self, artifact: Artifact, name: str) -> CachedAdapter:
        entry = self._entries.get(artifact.hash)
        if entry is None:
            self.loads += 1
            entry = CachedAdapter(asyncio.create_task(asyncio.to_thread(self._load, name, artifact)))
            self._entries[artifact.hash] = entry
        self._entries.move_to_end(artifact.hash)
        return entry
