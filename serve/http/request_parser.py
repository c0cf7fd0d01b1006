"""From a request body to what is to be drawn: the model, the size, the seeds and the work of it."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from pydantic import ValidationError

from sdxl_ray.errors import nearest
from serve.config import Limits
from serve.engine.request import AdapterUse, ImageRequest
from serve.http.errors import ApiError, of_validation
from serve.http.protocol import MAX_SEED, REASONS, AdapterBody, Body, body_model
from serve.replica.placement import Placement

#: Names that some clients send whatever the endpoint lists. A variant may have any of them.
_OF_OPENAI = re.compile(r"(dall-e|gpt-image|chatgpt-image)[a-z0-9.-]*\Z")
STEPS = 30
GUIDANCE = 7.5


@dataclass(frozen=True)
class ParsedRequest:
    """A request that is allowed.

    group: the deployment that draws it. work: pixels x steps x n, in steps of one image of the base's own size.
    compression: quality of a JPEG or WebP file. linked: the response has addresses of the images. background, quality:
    as requested, for the events of a stream.
    """

    model: str
    group: str
    requests: tuple[ImageRequest, ...]
    output_format: str
    stream: bool
    previews: int
    work: float
    compression: int | None = None
    linked: bool = False
    background: str = "opaque"
    quality: str = "auto"

    @property
    def size(self) -> str:
        """`"64x64"`: width x height in pixels."""
        return f"{self.requests[0].width}x{self.requests[0].height}"


class RequestParser:
    """Takes orders for one endpoint: its limits and what it serves."""

    def __init__(self, limits: Limits, layout: Placement, *, links: bool = True) -> None:
        """links: whether the endpoint keeps images, so that a response may have their addresses."""
        self.limits = limits
        self.layout = layout
        self.links = links
        self.body = body_model(limits)
        # SDXL is at home at 1024 pixels and draws from a quarter to twice that; below 32 nothing is left to see.
        self.min_edge = limits.min_edge or min(max(32, layout.edge // 32 * 8), limits.max_edge or layout.edge)
        self.max_edge = limits.max_edge or max(self.min_edge, layout.edge * 2)

    def take(self, raw: bytes) -> ParsedRequest:
        """Check a body. Raises ApiError: which field, its value, the limit and the nearest that is allowed."""
        try:
            body = self.body.model_validate_json(raw)
        except ValidationError as error:
            raise of_validation(error, self.body, AdapterBody, REASONS) from None
        if not body.prompt.strip():
            raise _invalid("prompt", "prompt is blank: say what to draw")
        model = next(iter(self.layout.places)) if body.model is None else body.model
        group = self._group(model)
        n, steps = body.n or 1, body.num_inference_steps or STEPS
        width, height = self._size("auto" if body.size is None else body.size)
        work = width * height / self.layout.edge**2 * steps * n
        if work > self.limits.work:
            raise _invalid(
                "num_inference_steps",
                f"{width}x{height} pixels x {steps} steps x {n} images = {work:.0f} steps of the base's own size "
                f"({self.layout.edge}x{self.layout.edge}): at most {self.limits.work}; ask for fewer steps, images "
                "or pixels",
            )
        stream = bool(body.stream)
        if stream and n > 1:
            raise _invalid("n", f"n = {n}: a stream is of one image; set n to 1 or stream to false")
        if body.partial_images and not stream:
            raise _invalid("partial_images", f"partial_images = {body.partial_images}: only with stream = true")
        self._check_format(body)
        seed = self._seed(body.seed, n)
        guidance = GUIDANCE if body.guidance_scale is None else body.guidance_scale
        adapters = self._adapters(model, body.adapters or ())
        return ParsedRequest(
            model=model,
            group=group,
            requests=tuple(
                ImageRequest(
                    prompt=body.prompt,
                    seed=seed + count,
                    negative_prompt=body.negative_prompt,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    height=height,
                    width=width,
                    scheduler=body.scheduler or "default",
                    adapters=adapters,
                    max_token_length=body.max_token_length or 225,
                )
                for count in range(n)
            ),
            output_format=body.output_format or "png",
            stream=stream,
            previews=body.partial_images or 0,
            work=work,
            compression=body.output_compression,
            linked=body.response_format == "url",
            background=body.background or "opaque",
            quality="low" if body.quality == "low" else "auto",
        )

    def _check_format(self, body: Body) -> None:
        """Refuse what the file format or the form of the response cannot do."""
        compression = body.output_compression
        if compression not in (None, 100) and body.output_format in (None, "png"):
            raise _invalid(
                "output_compression",
                f"output_compression = {compression}: a PNG file is lossless; set output_format to jpeg or webp, or "
                "leave output_compression out",
            )
        if body.response_format != "url":
            return
        if body.stream:
            raise _invalid(
                "response_format",
                "response_format = 'url': the events of a stream hold the image itself; leave response_format out, or "
                "set stream to false",
            )
        if not self.links:
            raise _invalid(
                "response_format",
                "response_format = 'url': this endpoint keeps no images (its setting images.keep_seconds is 0); use "
                "b64_json",
            )

    def _group(self, model: str) -> str:
        place = self.layout.places.get(model)
        if place is None:
            raise ApiError(404, _no_model(model, self.layout), "model_not_found", "model")
        if place.group is None:
            raise ApiError(404, f"model {model!r} is stopped: {place.reason}", "model_stopped", "model")
        return place.group

    def _size(self, text: str) -> tuple[int, int]:
        own = self.layout.edge
        if text == "auto":
            return own, own
        width, height = (int(pixels) for pixels in text.split("x"))
        near = tuple(min(max(round(edge / 8) * 8, self.min_edge), self.max_edge) for edge in (width, height))
        if near == (width, height):
            return width, height
        if max(width, height) > self.max_edge:
            limit = f"the largest size here is {self.max_edge}x{self.max_edge}"
        elif min(width, height) < self.min_edge:
            limit = f"the smallest size here is {self.min_edge}x{self.min_edge}"
        else:
            name, edge = ("width", width) if width % 8 else ("height", height)
            limit = f"{name} {edge} is no multiple of 8"
        raise _invalid(
            "size", f"size = {text!r}: {limit}; the nearest is {near[0]}x{near[1]}, and auto or no size is {own}x{own}"
        )

    def _seed(self, seed: int | None, n: int) -> int:
        """Fixed here, before anything is dispatched: a retry draws the same image."""
        if seed is None:
            return secrets.randbelow(2**32)  # small enough for every JSON reader
        if seed + n - 1 > MAX_SEED:
            raise _invalid("seed", f"seed = {seed} with n = {n}: the last seed would be above {MAX_SEED}")
        return seed

    def _adapters(self, model: str, named: tuple[AdapterBody, ...]) -> tuple[AdapterUse, ...]:
        """The adapters of a request; a LoRA model is its own adapter at full strength unless the request names it."""
        loras = [name for name, place in self.layout.places.items() if place.kind == "lora" and place.group]
        here = self.layout.groups[self._group(model)]
        combined = self.layout.combined(model)
        for index, adapter in enumerate(named):
            field = f"adapters[{index}].name"
            if adapter.name not in combined:
                known = nearest(adapter.name, loras) if loras else "this endpoint has none"
                where = f" can be combined with model {model!r}" if adapter.name in loras else ""
                raise _invalid(field, f"{field} = {adapter.name!r}: no such adapter{where}; {known}")
            if adapter.name in (other.name for other in named[:index]):
                raise _invalid(field, f"{field} = {adapter.name!r}: named twice")
        uses = tuple(AdapterUse(**adapter.model_dump()) for adapter in named)
        own = self.layout.places[model].kind == "lora" and here.fused != model
        if own and model not in (use.name for use in uses):
            uses = (AdapterUse(model), *uses)
        if len(uses) > self.limits.adapters:
            raise _invalid("adapters", f"{len(uses)} adapters with the model's own: at most {self.limits.adapters}")
        return uses


def _no_model(model: str, layout: Placement) -> str:
    """What is served instead of an unknown model, and how to serve under a name that a client insists on."""
    served = [name for name, place in layout.places.items() if place.group is not None]
    message = f"no model {model!r}: {nearest(model, served)}"
    if _OF_OPENAI.match(model):
        message += f"; a variant can have that name: sdxl-ray serve --variant {model}=ARTIFACT"
    return message


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, message, "invalid_value", param)
