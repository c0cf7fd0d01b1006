"""What a caller asks of an engine and what it gets back; the ways in which a picture can end without being drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from sdxl_ray.errors import RunError, UserError, nearest

#: Names a request may give besides "default", which is the base's own scheduler.
SCHEDULERS = ("euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "ddim", "lcm")


class DeadlinePassed(RunError):  # noqa: N818
    """The picture was not finished in time; its slot is free."""


class EngineStopped(RunError):  # noqa: N818
    """The engine was stopped before the picture was finished."""


@dataclass(frozen=True)
class AdapterUse:
    """One LoRA in a request. down, mid, up multiply `scale` in the UNet's three block groups.

    Text encoders and layers outside those groups get `scale` alone.
    """

    name: str
    scale: float = 1.0
    down: float = 1.0
    mid: float = 1.0
    up: float = 1.0

    @property
    def idle(self) -> bool:
        """No strength anywhere: the picture is the base's."""
        return self.scale == 0.0


@dataclass(frozen=True)
class PictureRequest:
    """One picture. It depends on these fields alone, not on what is drawn beside it.

    negative_prompt None: the base's unconditional prompt (zeros for SDXL). height, width: pixels, multiples of 8; None:
    the base's own. scheduler: "default" is the base's own class and config, so the picture is `sdxl-ray generate`'s.
    """

    prompt: str
    seed: int
    negative_prompt: str | None = None
    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    scheduler: str = "default"
    adapters: tuple[AdapterUse, ...] = ()


@dataclass(frozen=True)
class Times:
    """Where a picture's time went. queue_ms is all waiting together; batch_mean the pictures per UNet call."""

    queue_ms: float
    text_ms: float
    denoise_ms: float
    decode_ms: float
    total_ms: float
    batch_mean: float


@dataclass(frozen=True)
class Drawn:
    """A finished picture."""

    picture: Image.Image
    times: Times


def check(request: PictureRequest) -> None:
    """Raise UserError for what no engine can draw, naming the field, its value and its limit."""
    if request.num_inference_steps < 1:
        raise UserError(f"num_inference_steps = {request.num_inference_steps}: give at least 1")
    if not 0 <= request.seed < 2**64:
        raise UserError(f"seed = {request.seed}: give 0 to 2**64 - 1")
    if request.scheduler not in ("default", *SCHEDULERS):
        raise UserError(f"scheduler {request.scheduler!r}: {nearest(request.scheduler, ('default', *SCHEDULERS))}")
    for name, edge in (("height", request.height), ("width", request.width)):
        if edge is not None and (edge < 8 or edge % 8):
            raise UserError(f"{name} = {edge}: pictures have multiples of 8 pixels, try {max(8, round(edge / 8) * 8)}")
    numbers = {"guidance_scale": request.guidance_scale}
    for use in request.adapters:
        numbers |= {f"{name} of adapter {use.name!r}": getattr(use, name) for name in ("scale", "down", "mid", "up")}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise UserError(f"{name} = {number}: give a finite number")
    names = [use.name for use in request.adapters]
    if len(set(names)) < len(names):
        raise UserError(f"adapter {max(names, key=names.count)!r} is named twice: name it once, with the sum of scales")
