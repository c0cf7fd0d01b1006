"""A request on its way through the stages; it ends exactly once, with an image or an error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from serve.engine.adapter import AdapterStrength
from serve.engine.request import Drawn, ImageRequest, Times, Truncated

#: on_step(steps done, steps in all, preview): preview() decodes what the image is foreseen to be; it takes a while,
#: so call it off the event loop.
OnStep = Callable[[int, int, Callable[[], Image.Image] | None], None]


@dataclass(eq=False)
class RequestJob:
    """Seen by all threads; each field is written by one of them."""

    request: ImageRequest
    height: int
    width: int
    future: asyncio.Future[Drawn]
    #: Called once on the event loop when the last thread has let go of the job.
    ended: Callable[[RequestJob, Drawn | BaseException], None]
    on_step: OnStep | None = None
    strengths: tuple[AdapterStrength, ...] = ()
    #: Nobody waits any more; whoever holds the job drops it at the next occasion. Holds what it then ends with.
    abandoned: BaseException | None = None
    begun: float = field(default_factory=time.monotonic)
    text_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    batch_mean: float = 1.0
    truncated: dict[str, Truncated] = field(default_factory=dict)
    _over: bool = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of whoever asked."""
        return self.future.get_loop()

    def end(self, outcome: Image.Image | BaseException) -> None:
        """From the thread that holds the job: let go of it. A second end is ignored."""
        if self._over:
            return
        self._over = True
        result = outcome if isinstance(outcome, BaseException) else Drawn(outcome, self._times(), self.truncated)
        self.loop.call_soon_threadsafe(self.ended, self, result)

    def let_go(self) -> bool:
        """End the job if nobody waits for it any more; whether that was so."""
        if self.abandoned is not None:
            self.end(self.abandoned)
        return self.abandoned is not None

    def notify(self, *progress: Any) -> None:
        """Call `on_step` on the event loop: a slow listener delays no step."""
        if self.on_step is not None:
            self.loop.call_soon_threadsafe(self.on_step, *progress)

    def _times(self) -> Times:
        total_s = time.monotonic() - self.begun
        worked = (self.text_s, self.denoise_s, self.decode_s)
        text_ms, denoise_ms, decode_ms = (seconds * 1e3 for seconds in worked)
        return Times(
            queue_ms=max(total_s - sum(worked), 0.0) * 1e3,
            text_ms=text_ms,
            denoise_ms=denoise_ms,
            decode_ms=decode_ms,
            total_ms=total_s * 1e3,
            batch_mean=self.batch_mean,
        )
