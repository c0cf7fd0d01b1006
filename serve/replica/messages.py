"""What goes between the HTTP side and the replicas that draw: one image ordered, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from serve.engine.request import ImageRequest, Times, Truncated


@dataclass(frozen=True)
class ImageOrder:
    """One image. seconds: how long it may take from its arrival (clocks differ, durations do not).

    variant: the model id. previews: images during training. compression: quality of a JPEG or WebP file, None: default.
    """

    variant: str
    request: ImageRequest
    output_format: str
    seconds: float
    previews: int = 0
    compression: int | None = None


@dataclass(frozen=True)
class Preview:
    """An image on its way."""

    data: bytes
    step: int
    steps: int


@dataclass(frozen=True)
class EncodedImage:
    """A finished image in its file format, the hashes of what drew it, and what was cut off the request's texts."""

    data: bytes
    times: Times
    artifact: str
    adapters: dict[str, str] = field(default_factory=dict)
    truncated: dict[str, Truncated] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """Why a replica did not draw: a value, since an exception would be logged and wrapped on its way through Ray."""

    status: int
    code: str
    message: str
    param: str | None = None
