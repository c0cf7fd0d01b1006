"""What a caller asks of an engine and what it gets back; the ways in which an image can end without being drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from PIL import Image

from sdxl_ray.config.schema import TOKEN_LENGTHS, MaxTokenLength
from sdxl_ray.errors import RunError, UserError, nearest

#: Names a request may give besides "default", which is the base's own scheduler.
SCHEDULERS = ("euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "ddim", "lcm")


class DeadlinePassed(RunError):  # noqa: N818
    """The image was not finished in time; its slot is free."""


class EngineStopped(RunError):  # noqa: N818
    """The engine was stopped before the image was finished."""


class EngineFault(RunError):  # noqa: N818
    """The engine or its device failed, whatever was asked: another replica may draw the same request."""

    @classmethod
    def of(cls, what: str, error: BaseException) -> EngineFault:
        """In one line."""
        said = " ".join(str(error).split())[:300]
        return cls(f"{what} failed: {type(error).__name__}{': ' if said else ''}{said}")


class NotDrawable(UserError):  # noqa: N818
    """A request that these weights cannot draw. param: the field that is wrong."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class AdapterBroken(UserError):  # noqa: N818
    """An adapter that was good when it was named cannot be loaded now: its files changed, or are gone."""


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
        """No strength anywhere: the image is the base's."""
        return self.scale == 0.0


@dataclass(frozen=True)
class ImageRequest:
    """One image. It depends on these fields alone, not on what is drawn beside it.

    negative_prompt None: the base's unconditional prompt (zeros for SDXL). height, width: pixels, multiples of 8; None:
    the base's own. scheduler: "default" is the base's own class and config, so the image is `sdxl-ray generate`'s.
    max_token_length: tokens of a prompt that are used at most; a short prompt is encoded the same at every length.
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
    max_token_length: MaxTokenLength = 225


@dataclass(frozen=True)
class Truncated:
    """A text of a request of which the first `used_tokens` tokens are used; `text` is the rest."""

    tokens: int
    used_tokens: int
    text: str


@dataclass(frozen=True)
class Times:
    """Where an image's time went. queue_ms is all waiting together; batch_mean the images per UNet call."""

    queue_ms: float
    text_ms: float
    denoise_ms: float
    decode_ms: float
    total_ms: float
    batch_mean: float


@dataclass(frozen=True)
class Drawn:
    """A finished image. truncated: field of the request -> what was cut off, where a text was too long."""

    image: Image.Image
    times: Times
    truncated: dict[str, Truncated] = field(default_factory=dict)


def check(request: ImageRequest) -> None:
    """Raise NotDrawable for what no engine can draw, naming the field, its value and its limit."""
    if request.num_inference_steps < 1:
        raise NotDrawable(
            "num_inference_steps", f"num_inference_steps = {request.num_inference_steps}: give at least 1"
        )
    if not 0 <= request.seed < 2**64:
        raise NotDrawable("seed", f"seed = {request.seed}: give 0 to 2**64 - 1")
    if request.max_token_length not in TOKEN_LENGTHS:
        known = ", ".join(map(str, TOKEN_LENGTHS))
        message = f"max_token_length = {request.max_token_length}: choose from {known}"
        raise NotDrawable("max_token_length", message)
    if request.scheduler not in ("default", *SCHEDULERS):
        known = nearest(request.scheduler, ("default", *SCHEDULERS))
        raise NotDrawable("scheduler", f"scheduler {request.scheduler!r}: {known}")
    for name, edge in (("height", request.height), ("width", request.width)):
        if edge is not None and (edge < 8 or edge % 8):
            near = max(8, round(edge / 8) * 8)
            raise NotDrawable("size", f"{name} = {edge}: images have multiples of 8 pixels, try {near}")
    numbers = {"guidance_scale": request.guidance_scale}
    for use in request.adapters:
        numbers |= {f"{name} of adapter {use.name!r}": getattr(use, name) for name in ("scale", "down", "mid", "up")}
    for name, number in numbers.items():
        if not math.isfinite(number):
            param = name if name == "guidance_scale" else "adapters"
            raise NotDrawable(param, f"{name} = {number}: give a finite number")
    names = [use.name for use in request.adapters]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise NotDrawable("adapters", f"adapter {twice!r} is named twice: name it once, with the sum of scales")
