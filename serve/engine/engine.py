"""Engine: the base, its adapters and every running image, in one process.

    engine = ServingEngine(Base(), adapters={"dog": Artifact.open("runs/dog/artifact")}, settings=EngineSettings())
    await engine.start()
    drawn = await engine.draw(ImageRequest("a photo of sks dog", seed=1, adapters=(AdapterUse("dog", 0.8),)))

An image goes through three stages, each with a thread of its own: text, denoising, decoding. The event loop only
hands over. Everything that several images share is touched by one thread: the list of adapters by the event loop,
text encoders by the text thread, the UNet by the denoising thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from diffusers import StableDiffusionXLPipeline

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError, nearest
from sdxl_ray.io.artifact import Artifact
from serve.engine import warmup
from serve.engine.adapter import AdapterStrength, LayerPlaces, LoadedAdapter, load_adapter, require_mixable
from serve.engine.adapter_cache import AdapterCache
from serve.engine.image_job import OnStep, RequestJob
from serve.engine.request import (
    AdapterBroken,
    DeadlinePassed,
    Drawn,
    EngineFault,
    EngineStopped,
    ImageRequest,
    NotDrawable,
    check,
)
from serve.engine.settings import EngineSettings
from serve.engine.stages import Stages


class ServingEngine:
    """Draws images that join and leave one continuous batch; all methods belong to one event loop."""

    def __init__(
        self,
        base: Base,
        *,
        artifact: Artifact | None = None,
        adapters: Mapping[str, Artifact] | None = None,
        settings: EngineSettings | None = None,
        fuse: str | None = None,
        pipeline: StableDiffusionXLPipeline | None = None,
    ) -> None:
        """artifact: a full one, whose weights are used instead of the base's. adapters: what requests may name.

        fuse: name of an adapter that is merged into the weights for good. It costs nothing per step, but every image
        has it.
        pipeline: parts that are already in memory, on the settings' device and in their dtype, instead of loading the
        base's (random weights of the true shape, for measurements). Raises UserError for artifacts that do not fit.
        """
        self._base, self._artifact, self._pipe, self._fuse = base, artifact, pipeline, fuse
        self.settings = settings or EngineSettings()
        adapters = dict(adapters or {})
        self._fused = _take_fused(adapters, fuse, artifact is not None or pipeline is not None)
        if artifact is not None and artifact.manifest.kind != "full":
            raise UserError(f"artifact {str(artifact.folder)!r} is a LoRA: give it in adapters, or fuse it")
        self._adapter_cache = AdapterCache(self._load_adapter, self.settings.max_cached_adapters, self._tidy)
        for name, one in adapters.items():
            require_mixable(name, one, base)
            self._adapter_cache.known[name] = one
        self._jobs: set[RequestJob] = set()
        self._without_adapters = 0  # requests that wait for theirs to be loaded
        self._counts = dict.fromkeys(("drawn", "failed", "abandoned"), 0)
        self._running = False

    async def start(self) -> None:
        """Load, compile and warm up; the engine draws afterwards. Raises UserError or RunError when it cannot."""
        pipe = self._pipe
        if pipe is None:
            loading = asyncio.to_thread(warmup.load, self._base, self._artifact, self._fused, self.settings)
            pipe = self._pipe = await loading
        if pipe.unet.config.time_cond_proj_dim is not None:
            raise UserError(
                "this UNet takes its guidance as an input, which the engine does not give: use a plain SDXL"
            )
        warmup.lay_out(pipe, self.settings)
        self._places = LayerPlaces.of({part: getattr(pipe, part) for part in warmup.PARTS})
        self._stages = await asyncio.to_thread(Stages, pipe, self.settings, list(self._adapter_cache.known.values()))
        self._running = True
        try:
            for height, width in self._stages.sizes:
                await self.draw(ImageRequest("", seed=0, num_inference_steps=1, height=height, width=width))
        except BaseException:
            await self.stop()
            raise
        self._stages.denoiser.reset_times()
        self._counts = dict.fromkeys(self._counts, 0)

    async def stop(self) -> None:
        """Abandon what is in flight (it raises EngineStopped) and end all threads."""
        if not self._running:
            return
        self._running = False
        reason = EngineStopped("the engine was stopped before the image was finished")
        self._adapter_cache.close(reason)
        for job in self._jobs:
            job.abandoned = reason
        await asyncio.to_thread(self._stages.stop)
        while self._jobs:  # the threads' last words are still on their way
            await asyncio.sleep(0)

    async def draw(
        self, request: ImageRequest, *, on_step: OnStep | None = None, deadline: float | None = None
    ) -> Drawn:
        """One image.

        on_step: called on the event loop after each step with (steps done, steps in all, preview); preview() decodes
        what the image is foreseen to be and blocks, so call it in a thread. deadline: of `time.monotonic()`.
        Cancelling frees the image's place before the next step. Raises NotDrawable, or another UserError, for a
        request that cannot be drawn, AdapterBroken, RunError where its numbers are not finite, DeadlinePassed,
        EngineStopped, EngineFault.
        """
        begun = time.monotonic()
        if not self._running:
            raise EngineStopped("the engine is not running: start it first")
        self._check(request)
        own = self._own_size
        height, width = request.height or own, request.width or own
        used = [use for use in request.adapters if not use.idle]
        left_s = None if deadline is None else deadline - begun
        try:
            async with asyncio.timeout(left_s) as clock:
                adapters = await self._acquire([use.name for use in used])
                if not self._running:
                    self._adapter_cache.release([adapter.hash for adapter in adapters])
                    raise EngineStopped("the engine was stopped before the image was begun")
                strengths = tuple(
                    AdapterStrength(adapter, use.scale, use.down, use.mid, use.up)
                    for adapter, use in zip(adapters, used, strict=True)
                )
                future: asyncio.Future[Drawn] = asyncio.get_running_loop().create_future()
                job = RequestJob(request, height, width, future, self._ended, on_step, strengths, begun=begun)
                self._jobs.add(job)
                self._stages.put(job)
                try:
                    return await future
                except asyncio.CancelledError as error:
                    job.abandoned = error
                    raise
        except TimeoutError:
            if not clock.expired():
                raise
            raise DeadlinePassed(f"not finished {left_s:.3g} s after it was asked for: give it more time") from None

    async def _acquire(self, names: list[str]) -> list[LoadedAdapter]:
        self._without_adapters += 1
        try:
            return await self._adapter_cache.acquire(names)
        finally:
            self._without_adapters -= 1

    async def add_adapter(self, name: str, artifact: Artifact) -> None:
        """Let requests name an artifact, and load it; running images continue. Raises UserError: it does not fit."""
        if name in self._adapter_cache.known or name == self._fuse:
            raise UserError(f"adapter {name!r} is there already: remove it first, or choose another name")
        await asyncio.to_thread(require_mixable, name, artifact, self._base)
        self._adapter_cache.known[name] = artifact
        try:
            self._adapter_cache.release([one.hash for one in await self._adapter_cache.acquire([name])])
        except BaseException:
            self._adapter_cache.known.pop(name, None)
            raise

    async def remove_adapter(self, name: str) -> None:
        """Let no new request name it; running images that use it are finished. Raises UserError: unknown name."""
        self._adapter_cache.remove(name)

    async def check(self) -> None:
        """Raise EngineFault when this engine will draw no more: a thread has ended, or the device is lost."""
        if self._running:
            await asyncio.to_thread(self._stages.check)

    def status(self) -> dict[str, Any]:
        """Numbers for gauges, once started: step_ms and occupancy are running means over about 20 steps.

        adapter_load_ms: from the file to the device; adapter_switch_ms: a rearrangement of the UNet's layers, from an
        idle device to an idle device, the median of the last 9.
        """
        cached, denoiser = self._adapter_cache.cached, self._stages.denoiser
        in_flight = denoiser.in_flight
        return {
            "in_flight": in_flight,
            "waiting": max(len(self._jobs) + self._without_adapters - in_flight, 0),
            "resident": [adapter.name for adapter in cached],
            "adapter_load_ms": {adapter.name: adapter.load_ms for adapter in cached},
            "adapter_loads": self._adapter_cache.loads,
            "adapter_evictions": self._adapter_cache.evictions,
            "adapter_switches": denoiser.switches,
            "adapter_switch_ms": denoiser.switch_ms,
            "steps": denoiser.steps,
            "step_ms": denoiser.step_ms,
            "occupancy": denoiser.occupancy,
            **self._counts,
        }

    @property
    def _own_size(self) -> int:
        assert self._pipe is not None
        return int(self._pipe.default_sample_size * self._pipe.vae_scale_factor)

    def _check(self, request: ImageRequest) -> None:
        check(request)
        for use in request.adapters:
            if use.name == self._fuse:
                raise NotDrawable(
                    "adapters", f"adapter {use.name!r} is merged into this engine's weights: leave it out"
                )
            self._adapter_cache.named(use.name)

    def _ended(self, job: RequestJob, outcome: Drawn | BaseException) -> None:
        """On the event loop, when the last thread has let go of a job."""
        self._jobs.discard(job)
        self._adapter_cache.release([strength.adapter.hash for strength in job.strengths])
        how = "drawn" if isinstance(outcome, Drawn) else "failed" if job.abandoned is None else "abandoned"
        self._counts[how] += 1
        if job.future.done():
            return
        if isinstance(outcome, Drawn):
            job.future.set_result(outcome)
        else:
            job.future.set_exception(outcome)

    def _load_adapter(self, name: str, artifact: Artifact) -> LoadedAdapter:
        try:
            return load_adapter(name, artifact, self._base, self._places, self.settings.width, self.settings.place)
        except UserError as error:
            raise AdapterBroken(str(error)) from None
        except Exception as error:
            raise EngineFault.of(f"loading adapter {name!r}", error) from error

    def _tidy(self) -> None:
        self._stages.tidy()


def _take_fused(adapters: dict[str, Artifact], fuse: str | None, taken: bool) -> Artifact | None:
    """Take the adapter that is to be fused out of those that requests may name."""
    if fuse is None:
        return None
    if fuse not in adapters:
        raise UserError(f"fuse = {fuse!r}: {nearest(fuse, adapters) if adapters else 'there are no adapters'}")
    if taken:
        raise UserError(f"fuse = {fuse!r}: only the base's own weights take it, not a full artifact's or given ones")
    return adapters.pop(fuse)
