"""Images that responses link to (`response_format=url`): kept for a short time, in bounded memory, in one deployment.

Every ingress reaches the same images through the deployment's handle, so it does not matter which one answers, and an
update that replaces the ingresses loses none.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serve.http.errors import ApiError, busy

#: Names are the only protection of an image, so they have 192 random bits.
_NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|jpeg|webp)")
_ANSWER_S = 10.0
_AFTER_S = 2.0
_SWEEP_S = 5.0


@dataclass(frozen=True)
class KeptImage:
    """An image file. seconds: how long it is still kept."""

    data: bytes
    media_type: str
    seconds: int


class ImageLinkStore:
    """Files by unguessable names. The oldest are dropped first, when their time or the memory is over."""

    def __init__(self, keep_s: float, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._most = most_bytes
        self._clock = clock
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # the time at which each expires, and it
        self.bytes = 0

    def put(self, files: Sequence[bytes], output_format: str) -> list[str] | None:
        """Keep the images of one response; their names, or None when they need more than all of the memory."""
        size = sum(map(len, files))
        if size > self._most:
            return None
        self.sweep(room=size)
        names = [f"{secrets.token_urlsafe(24)}.{output_format}" for _ in files]
        expires = self._clock() + self._keep_s
        self._files.update({name: (expires, data) for name, data in zip(names, files, strict=True)})
        self.bytes += size
        return names

    def get(self, name: str) -> KeptImage | None:
        """An image that is still kept."""
        self.sweep()
        if name not in self._files:
            return None
        expires, data = self._files[name]
        return KeptImage(data, f"image/{name.rpartition('.')[2]}", int(expires - self._clock()))

    def sweep(self, room: int = 0) -> None:
        """Drop what has expired, and as many of the oldest as make room for so many bytes."""
        while self._files:
            expires, data = next(iter(self._files.values()))
            if expires > self._clock() and self.bytes + room <= self._most:
                return
            self._files.popitem(last=False)
            self.bytes -= len(data)


class ImageLinkReplica:
    """The deployment: one replica, which holds an `ImageLinkStore` and drops expired images unasked."""

    async def __init__(self, keep_s: float, most_bytes: int) -> None:  # type: ignore[misc]
        self._store = ImageLinkStore(keep_s, most_bytes)
        self._sweeps = asyncio.create_task(self._sweep())

    async def put(self, files: Sequence[bytes], output_format: str) -> list[str] | None:
        """As `ImageStore.put`."""
        return self._store.put(files, output_format)

    async def get(self, name: str) -> KeptImage | None:
        """As `ImageStore.get`."""
        return self._store.get(name)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._store.sweep()

    async def __del__(self) -> None:
        """Serve awaits this when a replica goes."""
        sweeps = getattr(self, "_sweeps", None)
        if sweeps is not None:
            sweeps.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeps


class ImageLinks:
    """An ingress's side of the deployment. Every method raises ApiError."""

    def __init__(self, handle: Any, keep_s: int) -> None:
        self._handle = handle
        self._keep_s = keep_s

    async def put(self, files: Sequence[bytes], output_format: str) -> list[str]:
        """Keep the images of one response; their names."""
        names: list[str] | None = await self._ask(self._handle.put, files, output_format)
        if names is None:
            size = sum(map(len, files))
            raise ApiError(
                422,
                f"the images have {size:,} bytes, more than this endpoint keeps (its setting images.memory_mib); use "
                "response_format b64_json",
                "too_large",
                "response_format",
            )
        return names

    async def get(self, name: str) -> KeptImage:
        """An image that is still kept."""
        kept: KeptImage | None = None
        if self._handle is not None and _NAME.fullmatch(name):
            kept = await self._ask(self._handle.get, name)
        if kept is None:
            raise ApiError(
                404,
                f"no image {name[:64]!r}: an image is kept for {self._keep_s} s after it was generated",
                "image_not_found",
            )
        return kept

    async def _ask(self, method: Any, *words: Any) -> Any:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            async with asyncio.timeout(_ANSWER_S):
                return await method.remote(*words)
        except (RayError, RayServeException, TimeoutError):
            raise busy("restarting", "the store of images does not answer", _AFTER_S) from None
