"""The OpenAI Images API as this endpoint speaks it: request body, response body, server-sent events.

Beyond OpenAI's fields a request may have `negative_prompt, num_inference_steps, guidance_scale, seed, scheduler,
adapters` and `max_token_length`. Every field is checked strictly (a string is no number) and unknown ones are refused.
`body_model` sets the limits of one endpoint into the fields, so that the OpenAPI description states what is enforced.

Clients send many of OpenAI's fields at their defaults. A field that this endpoint cannot honour accepts null, OpenAI's
default and the values that describe what happens here anyway; a value that would change the image is refused, with
the reason from `REASONS`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from sdxl_ray.config.schema import MaxTokenLength
from serve.config import Limits
from serve.engine.request import SCHEDULERS

MAX_SEED = 2**63 - 1
SchedulerName = Literal["default", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "ddim", "lcm"]
OutputFormat = Literal["png", "jpeg", "webp"]
AdapterScale = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]

#: Why a field of OpenAI's takes few values here or none: its description, and a part of the error message.
REASONS = {
    "background": "images have no transparency",
    "complexity": "nothing plans the image before it is generated",
    "frame_count": "images are not animated, so leave it out",
    "frame_duration_ms": "images are not animated, so leave it out",
    "moderation": "prompts and images are not moderated",
    "output_format": "the file format of the images; default png",
    "quality": "there is one quality: leave it out and set num_inference_steps",
    "style": "there is no setting for style: leave it out and describe the style in the prompt",
    "svg": "images are pixels, not vectors, so leave it out",
}

assert SchedulerName.__args__[1:] == SCHEDULERS  # type: ignore[attr-defined]


_SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


def _written_as_size(text: str) -> str:
    if not re.fullmatch(_SIZE, text):
        raise ValueError("write pixels as WIDTHxHEIGHT, for example 64x64, or auto")
    return text


class AdapterBody(BaseModel):
    """One LoRA of a request; `down`, `mid` and `up` multiply `scale` in those blocks of the UNet."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str = Field(max_length=64, description="a LoRA variant of this endpoint, as /v1/models lists it")
    scale: AdapterScale = 1.0
    down: AdapterScale = 1.0
    mid: AdapterScale = 1.0
    up: AdapterScale = 1.0


class Body(BaseModel):
    """`POST /v1/images/generations`. A field that is null counts as absent."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: str = Field(min_length=1, description="what to draw")
    model: str | None = Field(None, max_length=64, description="a variant; default: the first that is served")
    n: int | None = Field(None, ge=1, description="images, with seeds counting up; default 1")
    size: Annotated[str, AfterValidator(_written_as_size)] | None = Field(
        None, json_schema_extra={"pattern": _SIZE}, description="WIDTHxHEIGHT in pixels; auto: the base's own"
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="b64_json (default): images are in the response; url: at addresses that expire"
    )
    output_format: OutputFormat | None = Field(None, description=REASONS["output_format"])
    output_compression: int | None = Field(
        None, ge=0, le=100, description="quality of a JPEG or WebP file, default 92; a PNG file is lossless: 100 only"
    )
    stream: bool | None = Field(None, description="server-sent events; for one image")
    partial_images: int | None = Field(None, ge=0, le=3, description="images during training, when streaming")
    background: Literal["auto", "opaque"] | None = Field(None, description=REASONS["background"])
    quality: Literal["auto", "standard", "low"] | None = Field(None, description=REASONS["quality"])
    style: Literal["vivid"] | None = Field(None, description=REASONS["style"])
    moderation: Literal["auto", "low"] | None = Field(None, description=REASONS["moderation"])
    complexity: Literal["low"] | None = Field(None, description=REASONS["complexity"])
    frame_count: None = Field(None, description=REASONS["frame_count"])
    frame_duration_ms: None = Field(None, description=REASONS["frame_duration_ms"])
    svg: None = Field(None, description=REASONS["svg"])
    user: str | None = Field(None, max_length=256, description="not used and not logged")
    safety_identifier: str | None = Field(None, max_length=256, description="not used and not logged")
    negative_prompt: str | None = Field(None, description="what not to draw; default: the unconditional prompt")
    num_inference_steps: int | None = Field(None, ge=1, description="denoising steps; default 30")
    guidance_scale: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="classifier-free guidance; 1 is none; default 7.5"
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="of the first image; default: drawn at random")
    scheduler: SchedulerName | None = Field(None, description="default: the base's own")
    adapters: tuple[AdapterBody, ...] | None = Field(None, description="LoRAs that are combined with the model")
    max_token_length: MaxTokenLength | None = Field(
        None,
        description="tokens of a prompt that are used, in chunks of 75; default 225; more are cut off and reported",
    )


def body_model(limits: Limits) -> type[Body]:
    """`Body` with an endpoint's own limits in its fields."""

    def limited(name: str, kind: Any, **bounds: Any) -> tuple[Any, Any]:
        base = Body.model_fields[name]
        return kind, Field(... if base.is_required() else None, description=base.description, **bounds)

    return create_model(
        "ImageRequest",
        __base__=Body,
        __doc__=Body.__doc__,
        prompt=limited("prompt", str, min_length=1, max_length=limits.prompt_characters),
        negative_prompt=limited("negative_prompt", str | None, max_length=limits.prompt_characters),
        n=limited("n", int | None, ge=1, le=limits.n),
        num_inference_steps=limited("num_inference_steps", int | None, ge=1, le=limits.steps),
        guidance_scale=limited("guidance_scale", float | None, ge=0, le=limits.guidance_scale, allow_inf_nan=False),
        adapters=limited("adapters", tuple[AdapterBody, ...] | None, max_length=limits.adapters),
    )


class ImageTimes(BaseModel):
    """Milliseconds on the server; `batch_mean` is how many images shared its denoising steps on average."""

    queue_ms: float
    text_ms: float
    denoise_ms: float
    decode_ms: float
    total_ms: float
    batch_mean: float


class InlineImage(BaseModel):
    """An image in the response, base64."""

    b64_json: str
    seed: int


class TruncatedText(BaseModel):
    """A text that is longer than `max_token_length`: the first `used_tokens` are used, `text` is cut off."""

    tokens: int
    used_tokens: int
    text: str


class LinkedImage(BaseModel):
    """An image at an address that expires; the address needs no API key."""

    url: str
    seed: int


class TokenDetails(BaseModel):
    """Tokens by kind."""

    text_tokens: int = 0
    image_tokens: int = 0


class Usage(BaseModel):
    """OpenAI's count of billed tokens. Nothing is billed here, so every count is 0."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    output_tokens_details: TokenDetails = TokenDetails()
    total_tokens: int = 0


class Extras(BaseModel):
    """What this server adds: what drew the images, and how long it took."""

    artifact: str = Field(description="hash of the model's artifact; empty for the base")
    adapters: dict[str, str] = Field(description="hash of each adapter that was used")
    truncated: dict[str, TruncatedText] = Field(description="prompt, negative_prompt: where one was cut off")
    times: list[ImageTimes]


class ImagesResponse(BaseModel):
    """The response without `stream`."""

    created: int
    model: str
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    size: str
    data: list[InlineImage | LinkedImage]
    usage: Usage = Usage()
    sdxl_ray: Extras


class ModelBody(BaseModel):
    """One entry of `/v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sdxl-ray"
    artifact: str = Field(description="hash of the artifact; empty for the base")
    kind: Literal["base", "lora", "full", "unknown"]
    state: Literal["ready", "starting", "stopped"]
    reason: str | None = Field(description="why it is stopped")
    adapters: list[str] = Field(description="LoRAs that a request may combine with it")
    group: str | None = Field(description="its set of weights: models with the same one share replicas")


class Models(BaseModel):
    """`GET /v1/models`: every configured variant, those that could not start too."""

    object: Literal["list"] = "list"
    data: list[ModelBody]
