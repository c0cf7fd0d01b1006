"""The deployment that draws: one engine, and so one set of weights, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from PIL import Image

from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.artifact import Artifact
from serve.config import ServeConfig, parse
from serve.engine.request import AdapterBroken, DeadlinePassed, EngineFault, EngineStopped, NotDrawable
from serve.http.metrics import Meter
from serve.replica.encode import encode
from serve.replica.messages import EncodedImage, ImageOrder, Preview, Refusal
from serve.replica.placement import ReplicaGroup

_LOG = logging.getLogger("ray.serve")
_PERIOD_S = 1.0
#: Before a fault is reported: a replica that fails at once looks idle, and Serve would send it all that others could
#: draw.
_FAULT_S = 0.5


class ModelReplica:
    """Loads when it is made, and is ready afterwards. Everything that it is given and gives is plain or frozen."""

    async def __init__(self, name: str, config: dict[str, Any], group: dict[str, Any]) -> None:  # type: ignore[misc]
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        self.name = name
        self.config = parse(config)
        self.group = ReplicaGroup(**group)
        self.meter = Meter()
        self.hashes: dict[str, str] = {}
        self.stopped: dict[str, str] = {}
        self.engine = self._engine(self.config)
        await self.engine.start()
        self._gauges = asyncio.create_task(self._publish())

    def _engine(self, config: ServeConfig) -> Any:
        from serve.engine.adapter import require_mixable
        from serve.engine.engine import ServingEngine

        full = None
        if self.group.artifact is not None:
            full = Artifact.open(self.group.artifact)
            self.hashes |= dict.fromkeys(self.group.variants, full.hash)
        adapters = {}
        for name, folder in self.group.adapters.items():
            try:
                artifact = Artifact.open(folder)
                if name != self.group.fused:
                    require_mixable(name, artifact, config.base)
            except UserError as error:
                if name == self.group.fused:
                    raise
                self.stopped[name] = str(error)
            else:
                adapters[name] = artifact
                self.hashes[name] = artifact.hash
        return ServingEngine(
            config.base, artifact=full, adapters=adapters, settings=config.engine, fuse=self.group.fused
        )

    async def draw(self, order: ImageOrder) -> EncodedImage | Refusal:
        """One image, encoded."""
        return await self._draw(order, None)

    async def draw_stream(self, order: ImageOrder) -> AsyncIterator[Preview | EncodedImage | Refusal]:
        """The images during training, then the image."""
        steps = order.request.num_inference_steps
        wanted = {round(steps * (index + 1) / (order.previews + 1)) for index in range(order.previews)} - {0, steps}
        looks: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

        def on_step(step: int, of: int, preview: Any) -> None:
            if step in wanted and preview is not None:
                looks.put_nowait((step, preview))

        drawing = asyncio.create_task(self._draw(order, on_step if wanted else None))
        try:
            while not drawing.done():
                look = asyncio.create_task(looks.get())
                await asyncio.wait({drawing, look}, return_when=asyncio.FIRST_COMPLETED)
                if drawing.done():
                    look.cancel()
                    break
                step, preview = look.result()
                with contextlib.suppress(Exception):  # the image itself will say what is wrong
                    yield Preview(await asyncio.to_thread(_encoded_preview, preview, order), step, steps)
            yield await drawing
        finally:
            drawing.cancel()

    async def _draw(self, order: ImageOrder, on_step: Any) -> EncodedImage | Refusal:
        named = [use.name for use in order.request.adapters]
        for name in (order.variant, *named):
            if name in self.stopped:
                param = "model" if name == order.variant else "adapters"
                return Refusal(404, "model_stopped", f"model {name!r} is stopped: {self.stopped[name]}", param)
        try:
            drawn = await self.engine.draw(order.request, on_step=on_step, deadline=time.monotonic() + order.seconds)
        except (UserError, RunError) as error:
            if isinstance(error, EngineFault):
                await asyncio.sleep(_FAULT_S)
            return self._refusal(order, error)
        for stage in ("queue", "text", "denoise", "decode"):
            value = getattr(drawn.times, f"{stage}_ms")
            self.meter.observe("sdxl_ray_stage_ms", value, variant=order.variant, stage=stage)
        artifact = self.hashes.get(order.variant, "")
        adapters = {name: self.hashes[name] for name in named}
        facts = self._facts(order, artifact)
        data = await asyncio.to_thread(encode, drawn.image, order.output_format, facts, order.compression)
        return EncodedImage(data, drawn.times, artifact, adapters, drawn.truncated)

    def _refusal(self, order: ImageOrder, error: UserError | RunError) -> Refusal:
        """What a client is told; of the server's own faults only its log says more."""
        if isinstance(error, EngineFault | AdapterBroken):
            _LOG.error("group %s: %s", self.name, error)
        model = f"model {order.variant!r}"
        match error:
            case DeadlinePassed():
                reported = 503, "deadline_passed", f"no image within {self.config.queue.timeout_s:g} s"
            case EngineStopped():
                reported = 503, "restarting", "this replica is being stopped"
            case EngineFault():  # tried again elsewhere; `check_health` says whether this replica goes
                reported = 503, "engine_fault", f"{model}: a replica failed while it drew; its log says why"
            case AdapterBroken():
                reported = 503, "adapter_broken", f"{model}: an adapter cannot be loaded any more; the log says why"
            case UserError():
                reported = 400, "invalid_value", str(error)
            case _:  # the numbers left their range: strengths or guidance that this model cannot take
                reported = 422, "not_drawn", str(error)
        return Refusal(*reported, error.param if isinstance(error, NotDrawable) else None)

    def _facts(self, order: ImageOrder, artifact: str) -> dict[str, object]:
        """What a PNG says of itself: how it was made, without the words, which are the client's own."""
        asked = order.request
        strengths = [f"{use.name}={use.scale}*{use.down}/{use.mid}/{use.up}" for use in asked.adapters]
        return {
            "seed": asked.seed,
            "model": order.variant,
            "artifact": artifact,
            "adapters": " ".join(strengths),
            "steps": asked.num_inference_steps,
            "guidance": asked.guidance_scale,
            "scheduler": asked.scheduler,
        }

    async def check_health(self) -> None:
        """Serve asks now and then, and replaces a replica that raises three times running."""
        await self.engine.check()

    async def describe(self) -> dict[str, Any]:
        """Hashes of what is loaded, what could not be, and the engine's state."""
        return {"pid": os.getpid(), "hashes": self.hashes, "stopped": self.stopped, "engine": self.engine.status()}

    async def _publish(self) -> None:
        """The engine's state as gauges, every second."""
        while True:
            now = self.engine.status()
            values = {
                "sdxl_ray_in_flight": now["in_flight"],
                "sdxl_ray_waiting": now["waiting"],
                "sdxl_ray_occupancy": now["occupancy"],
                "sdxl_ray_step_ms": now["step_ms"],
                "sdxl_ray_resident_adapters": len(now["resident"]),
            }
            for name, value in values.items():
                self.meter.set(name, float(value), group=self.name)
            await asyncio.sleep(_PERIOD_S)

    async def __del__(self) -> None:
        """Serve awaits this when a replica goes."""
        gauges = getattr(self, "_gauges", None)
        if gauges is not None:
            gauges.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gauges
            await self.engine.stop()


def _encoded_preview(preview: Callable[[], Image.Image], order: ImageOrder) -> bytes:
    return encode(preview(), order.output_format, {}, order.compression)
