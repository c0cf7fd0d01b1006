"""The continuous batch: one thread that takes steps, and between steps lets images in and out.

Each size has a batch of its own with `max_batch` places; sizes take turns, a step each. Nobody waits for a whole
image: a free place is taken before the next step of that size.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import torch

from serve.engine.batch import DenoiseBatch, RunningImage
from serve.engine.multi_lora import LoraLayers
from serve.engine.request import EngineFault

Size = tuple[int, ...]
_SWITCHES = 9  # of the last ones the median
_SMOOTHING = 0.05  # of the running means: about the last 20 steps


class SizeGroup:
    """The images of one size: those that wait, first come first served, and those in the batch."""

    def __init__(self) -> None:
        self.waiting: deque[RunningImage] = deque()
        self.running_images: list[RunningImage] = []
        self.batch: DenoiseBatch | None = None


class DenoiseLoop:
    """Owns the UNet while it runs. `finish(image)` gets finished images."""

    def __init__(
        self,
        unet: Any,
        lora: LoraLayers,
        *,
        max_batch: int,
        prepare: Callable[[], None],
        finish: Callable[[RunningImage], None],
        preview: Callable[[RunningImage], Callable[[], Any]],
    ) -> None:
        """prepare: called on the thread before the first step (what torch compiles is bound to a thread)."""
        self._unet, self._lora, self._max_batch = unet, lora, max_batch
        self._prepare, self._finish, self._preview = prepare, finish, preview
        self._groups: OrderedDict[Size, SizeGroup] = OrderedDict()
        self._arrived: deque[RunningImage] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._pace = _Pace(next(unet.parameters()).device)
        self.ready = threading.Event()
        self.broken: BaseException | None = None
        self.steps = 0
        self.step_ms = 0.0
        self.occupancy = 0.0
        self.switches = 0
        self.switch_ms = 0.0
        self._switches_ms: deque[float] = deque(maxlen=_SWITCHES)
        self._thread = threading.Thread(target=self._run, name="denoise", daemon=True)
        self._thread.start()

    def put(self, running: RunningImage) -> None:
        """From any thread: let an image join."""
        with self._wake:
            if self.broken is None:
                self._arrived.append(running)
                self._wake.notify()
                return
        running.job.end(EngineFault.of("denoising", self.broken))

    @property
    def alive(self) -> bool:
        """Whether the thread still takes steps."""
        return self._thread.is_alive()

    def tidy(self) -> None:
        """From any thread: let go of adapters that are gone, also when there is nothing to draw."""
        with self._wake:
            self._wake.notify()

    @property
    def in_flight(self) -> int:
        """Images in the batches (those that wait for a place not counted)."""
        return sum(len(group.running_images) for group in list(self._groups.values()))

    def reset_times(self) -> None:
        """Start counting anew, after a warm-up; nothing may be in flight."""
        self.steps, self.step_ms, self.occupancy = 0, 0.0, 0.0

    def stop(self) -> None:
        """End after the step that is being taken; waits for it. Images must have been abandoned before."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            self._prepare()
        except Exception as error:
            self.broken = error
            return
        finally:
            self.ready.set()
        try:
            while self._next_arrivals():
                self._turn()
        except Exception as error:
            logging.getLogger(__name__).exception("the denoising thread ends")
            self._break(error)

    def _turn(self) -> None:
        self._board()
        if self._groups:
            size, group = next(iter(self._groups.items()))
            self._groups.move_to_end(size)  # the next turn is another size's
            self._step(group)
        elif self._lora.stale:
            self._activate()

    def _break(self, error: BaseException) -> None:
        """Nothing is drawn here any more: end what is here, and what is still to come."""
        with self._wake:
            self.broken = error
            running_images = list(self._arrived)
        for group in self._groups.values():
            running_images += [*group.running_images, *group.waiting]
        for running in running_images:
            running.job.end(EngineFault.of("denoising", error))

    def _next_arrivals(self) -> bool:
        """Wait until there is something to do; sort in what has come. False when the thread should end."""
        with self._wake:
            while not (self._arrived or self._groups or self._stopping or self._lora.stale):
                self._wake.wait()
            arrived, self._arrived = self._arrived, deque()
            stopping = self._stopping
        for running in arrived:
            self._groups.setdefault(running.size, SizeGroup()).waiting.append(running)
        return not stopping or bool(self._groups)

    def _board(self) -> None:
        """Let abandoned images go and fill free places."""
        for size, group in list(self._groups.items()):
            staying = [running for running in group.running_images if not running.job.let_go()]
            group.waiting = deque(running for running in group.waiting if not running.job.let_go())
            while group.waiting and len(staying) < self._max_batch:
                staying.append(group.waiting.popleft())
                staying[-1].joined = time.monotonic()
            if staying != group.running_images:
                group.running_images, group.batch = staying, None
            if not staying:
                del self._groups[size]

    def _activate(self) -> None:
        """Lay out the adapters of all running images, and no others."""
        running_images = [running for group in self._groups.values() for running in group.running_images]
        adapters = [s.adapter for running in running_images for s in running.job.strengths]
        if self._lora.suits(adapters):
            return
        for group in self._groups.values():  # their masks are of other columns, also where this fails half way
            group.batch = None
        self._pace.finish()
        begun = time.monotonic()
        self._lora.activate(adapters)
        self._pace.finish()  # what was only given to a GPU has not been done
        self.switches += 1
        self._switches_ms.append((time.monotonic() - begun) * 1e3)
        self.switch_ms = statistics.median(self._switches_ms)

    def _step(self, group: SizeGroup) -> None:
        begun = time.monotonic()
        running_images = list(group.running_images)
        try:
            if group.batch is None or self._lora.stale:
                self._activate()
                group.batch = DenoiseBatch(group.running_images, self._lora)
            group.batch.step(self._unet)
            self._pace.wait()
        except Exception as error:  # out of memory, above all: these images fail, the engine continues
            for running in running_images:
                running.job.end(EngineFault.of("a denoising step", error))
            group.running_images, group.batch = [], None
            return
        self._count(time.monotonic() - begun, len(running_images))
        for running in running_images:
            running.job.notify(running.step, len(running.sampler.timesteps), self._preview(running))
            if running.done:
                self._finish(running)
        if any(running.done for running in running_images):
            group.running_images, group.batch = [running for running in running_images if not running.done], None

    def _count(self, seconds: float, images: int) -> None:
        share = _SMOOTHING if self.steps else 1.0
        self.step_ms += share * (seconds * 1e3 - self.step_ms)
        self.occupancy += share * (images - self.occupancy)
        self.steps += 1


class _Pace:
    """Keeps the thread at most one step ahead of a GPU, or joining and leaving would be decided far too early."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda"
        self._before: torch.cuda.Event | None = None

    def finish(self) -> None:
        """Wait until the device has done all that it was given."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)

    def wait(self) -> None:
        """Called after each step has been given to the device."""
        if not self._on_gpu:
            return
        now = torch.cuda.Event()
        now.record()
        if self._before is not None:
            self._before.synchronize()
        self._before = now
