"""What a request may ask: every limit, with the value and the way out in the message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve.config import Limits
from serve.engine.request import AdapterUse
from serve.http.errors import ApiError
from serve.http.protocol import MAX_SEED, Body
from serve.http.request_parser import ParsedRequest, RequestParser
from serve.replica.placement import Placement, ReplicaGroup, VariantPlacement

LORAS = {"dog": "/dog", "toy": "/toy"}
LAYOUT = Placement(
    64,
    {
        "weights": ReplicaGroup(adapters=LORAS, variants=["base", "dog", "toy"]),
        "weights-melted": ReplicaGroup(adapters={"melted": "/m"}, fused="melted", variants=["melted"]),
        "weights-whole": ReplicaGroup(artifact="/whole", adapters=LORAS, variants=["whole"]),
    },
    {
        "base": VariantPlacement("base", group="weights"),
        "dog": VariantPlacement("lora", "d" * 64, group="weights"),
        "toy": VariantPlacement("lora", "t" * 64, group="weights"),
        "melted": VariantPlacement("lora", "m" * 64, group="weights-melted"),
        "whole": VariantPlacement("full", "w" * 64, group="weights-whole"),
        "lost": VariantPlacement("unknown", reason="it is lost"),
    },
)


def take(limits: Limits | None = None, **fields: Any) -> ParsedRequest:
    return RequestParser(limits or Limits(), LAYOUT).take(json.dumps({"prompt": "a dog", **fields}).encode())


def test_what_is_left_out_is_filled_in() -> None:
    asked = take()
    request = asked.requests[0]
    assert (asked.model, asked.group, asked.size, asked.output_format, asked.work) == (
        "base", "weights", "64x64", "png", 30,
    )  # fmt: skip
    assert (request.num_inference_steps, request.guidance_scale, request.scheduler) == (30, 7.5, "default")
    nothing = dict.fromkeys(("model", "n", "size", "stream", "seed", "adapters", "guidance_scale"))
    assert take(**nothing).requests[0].guidance_scale == 7.5
    assert request.max_token_length == 225
    assert take(max_token_length=75).requests[0].max_token_length == 75
    assert take(guidance_scale=0).requests[0].guidance_scale == 0
    assert take().requests[0].seed != take().requests[0].seed


def test_seeds_count_up_and_work_is_counted() -> None:
    asked = take(n=3, seed=5, size="128x32", num_inference_steps=10)
    assert [request.seed for request in asked.requests] == [5, 6, 7]
    assert (asked.requests[0].width, asked.requests[0].height) == (128, 32)
    assert asked.work == 30


def test_edges_that_are_set_are_kept() -> None:
    def edges(**limits: int) -> tuple[int, int]:
        desk = RequestParser(Limits(**limits), LAYOUT)
        return desk.min_edge, desk.max_edge

    assert edges() == (32, 128)
    assert edges(min_edge=16) == (16, 128)
    assert edges(max_edge=24) == (24, 24)
    assert edges(min_edge=256) == (256, 256)


def test_a_lora_is_an_adapter_of_its_own() -> None:
    def uses(**fields: Any) -> tuple[AdapterUse, ...]:
        return take(**fields).requests[0].adapters

    assert uses(model="dog") == (AdapterUse("dog"),)
    assert uses(model="dog", adapters=[{"name": "dog", "scale": 0.5}]) == (AdapterUse("dog", 0.5),)
    both = uses(model="dog", adapters=[{"name": "toy", "mid": 0}])
    assert both == (AdapterUse("dog"), AdapterUse("toy", mid=0.0))
    assert uses(model="whole", adapters=[{"name": "toy"}]) == (AdapterUse("toy"),)
    assert uses(model="melted") == ()
    assert take(model="melted").group == "weights-melted"


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"model": "dgo"}, 404, "model", "did you mean 'dog'?"),
        ({"model": "lost"}, 404, "model", "it is lost"),
        ({"model": ""}, 404, "model", "no model ''"),
        ({"size": ""}, 400, "size", "size"),
        ({"prompt": ""}, 400, "prompt", "at least 1 character"),
        ({"prompt": " \n"}, 400, "prompt", "say what to draw"),
        ({"prompt": "a" * 4097}, 400, "prompt", "(4,097 characters): string should have at most 4096"),
        ({"prompt": None}, 400, "prompt", "valid string"),
        ({"negative_prompt": "a" * 4097}, 400, "negative_prompt", "at most 4096"),
        ({"n": 0}, 400, "n", "n = 0: input should be greater than or equal to 1"),
        ({"n": 11}, 400, "n", "less than or equal to 10"),
        ({"n": "2"}, 400, "n", "n = '2': input should be a valid integer"),
        ({"n": True}, 400, "n", "valid integer"),
        ({"num_inference_steps": 101}, 400, "num_inference_steps", "less than or equal to 100"),
        ({"num_inference_steps": 1.5}, 400, "num_inference_steps", "valid integer"),
        ({"n": 10, "num_inference_steps": 41}, 400, "num_inference_steps", "= 410 steps of the base's own size"),
        ({"size": "128x128", "num_inference_steps": 101}, 400, "num_inference_steps", "100"),
        ({"size": "63x64"}, 400, "size", "the nearest is 64"),
        ({"size": "64x60"}, 400, "size", "height 60 is no multiple of 8; the nearest is 64x64"),
        ({"size": "64x136"}, 400, "size", "the largest size here is 128x128; the nearest is 64x128"),
        ({"size": "1024x1024"}, 400, "size", "the largest size here is 128x128; the nearest is 128x128, and auto"),
        ({"size": "1023x64"}, 400, "size", "the largest size here is 128x128"),
        ({"size": "24x64"}, 400, "size", "the smallest size here is 32x32; the nearest is 32x64"),
        ({"size": "64"}, 400, "size", "WIDTHxHEIGHT"),
        ({"size": "99999999999x64"}, 400, "size", "WIDTHxHEIGHT"),
        ({"size": "64x64\n"}, 400, "size", "WIDTHxHEIGHT"),
        ({"guidance_scale": -1}, 400, "guidance_scale", "greater than or equal to 0"),
        ({"guidance_scale": 51}, 400, "guidance_scale", "less than or equal to 50"),
        ({"guidance_scale": float("nan")}, 400, "guidance_scale", "finite"),
        ({"guidance_scale": float("inf")}, 400, "guidance_scale", "finite"),
        ({"seed": -1}, 400, "seed", "greater than or equal to 0"),
        ({"seed": MAX_SEED, "n": 2}, 400, "seed", "the last seed would be above"),
        ({"scheduler": "eulr"}, 400, "scheduler", "'euler'"),
        (
            {"model": "dall-e-3"},
            404,
            "model",
            "choose from base, dog, melted, toy, whole; a variant can",
        ),
        ({"response_format": "file"}, 400, "response_format", "'b64_json' or 'url'"),
        ({"response_format": "url", "stream": True}, 400, "response_format", "set stream to false"),
        ({"output_format": "gif"}, 400, "output_format", "'png'"),
        ({"output_compression": 80}, 400, "output_compression", "a PNG file is lossless; set output_format to jpeg"),
        ({"output_compression": 101, "output_format": "jpeg"}, 400, "output_compression", "less than or equal to 100"),
        (
            {"background": "transparent"},
            400,
            "background",
            "= 'transparent': input should be 'auto' or 'opaque'; im",
        ),
        ({"quality": "hd"}, 400, "quality", "'auto', 'standard' or 'low'; there is one quality: leave it out and set"),
        ({"style": "natural"}, 400, "style", "= 'natural': input should be 'vivid'; there is no setting for style"),
        (
            {"frame_count": 4},
            400,
            "frame_count",
            "= 4: only null is accepted; images are not animated, so",
        ),
        ({"stream": True, "n": 2}, 400, "n", "a stream is of one image"),
        ({"partial_images": 2}, 400, "partial_images", "only with stream = true"),
        ({"partial_images": 4, "stream": True}, 400, "partial_images", "less than or equal to 3"),
        ({"image": "http://127.0.0.1/a.png"}, 400, "image", "unknown field 'image'"),
        ({"num_inference_step": 2}, 400, "num_inference_step", "did you mean 'num_inference_steps'?"),
        ({"adapters": [{"name": "dgo"}]}, 400, "adapters[0].name", "did you mean 'dog'?"),
        ({"adapters": [{"name": "lost"}]}, 400, "adapters[0].name", "no such adapter"),
        ({"adapters": [{"name": "dog"}, {"name": "dog"}]}, 400, "adapters[1].name", "named twice"),
        ({"adapters": [{"name": "dog", "scale": 11}]}, 400, "adapters[0].scale", "less than or equal to 10"),
        ({"adapters": [{"name": "dog", "scale": float("nan")}]}, 400, "adapters[0].scale", "finite"),
        (
            {"adapters": [{"name": "dog", "weight": 1}]},
            400,
            "adapters[0].weight",
            "choose from down, mid, name, scale, up",
        ),
        ({"adapters": [{}]}, 400, "adapters[0].name", "field required"),
        ({"adapters": [{"name": "dog"}] * 5}, 400, "adapters", "at most 4"),
        ({"model": "melted", "adapters": [{"name": "dog"}]}, 400, "adapters[0].name", "combined with model 'melted'"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], status: int, param: str, message: str) -> None:
    with pytest.raises(ApiError) as refused:
        take(**fields)
    assert (refused.value.status, refused.value.param) == (status, param)
    assert message in refused.value.message
    assert len(refused.value.message) < 400


#: What clients send when their user gives a prompt alone, beside model and prompt.
CLIENTS = {
    "langchain": {"n": 1, "size": "1024x1024", "quality": "standard"},
    "langchain.js": {"n": 1, "size": "1024x1024", "response_format": "url", "style": "vivid", "quality": "standard"},
    "laravel/ai": {"response_format": "b64_json"},
    "laravel/ai gpt-image": {"moderation": "low", "size": "1536x1024", "quality": "low"},
    "genkit": {"response_format": "b64_json", "n": 1},
    "vercel ai": {"n": 1, "size": "1024x1024", "response_format": "b64_json"},
    "spring ai": {"n": 1, "size": "1024x1024", "quality": "standard", "response_format": "url", "user": "u"},
    "open webui": {"n": 1, "size": "512x512", "response_format": "b64_json"},
    "librechat": {"n": 1, "size": "1792x1024", "quality": "standard", "style": "vivid", "response_format": "url"},
    "llamaindex": {"n": 1, "size": "1024x1024", "quality": "standard", "style": "vivid", "response_format": "b64_json"},
    "gpt-image defaults": {
        "background": "auto", "moderation": "auto", "n": 1, "output_compression": 100, "output_format": "png",
        "partial_images": 0, "quality": "auto", "size": "auto", "stream": False, "safety_identifier": "u",
    },
    "everything null": dict.fromkeys(name for name in Body.model_fields if name != "prompt"),
}  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
def test_what_clients_send_by_default_is_accepted(client: str) -> None:
    sdxl = RequestParser(Limits(), Placement(1024, LAYOUT.groups, LAYOUT.places))
    asked = sdxl.take(json.dumps({"prompt": "a dog", **CLIENTS[client]}).encode())  # type: ignore[dict-item]
    assert asked.linked == (CLIENTS[client].get("response_format") == "url")  # type: ignore[attr-defined]


def test_links_need_an_endpoint_that_keeps_images() -> None:
    with pytest.raises(ApiError, match=r"images\.keep_seconds is 0"):
        RequestParser(Limits(), LAYOUT, links=False).take(b'{"prompt": "a dog", "response_format": "url"}')


def test_the_models_own_adapter_counts() -> None:
    limits = Limits(adapters=1)
    assert len(take(limits, model="dog").requests[0].adapters) == 1
    with pytest.raises(ApiError, match="2 adapters with the model's own: at most 1"):
        take(limits, model="dog", adapters=[{"name": "toy"}])


def test_the_range_of_sizes_follows_the_base() -> None:
    sdxl = RequestParser(Limits(), Placement(1024, LAYOUT.groups, LAYOUT.places))
    assert (sdxl.min_edge, sdxl.max_edge) == (256, 2048)
    own = RequestParser(Limits(min_edge=64, max_edge=64), LAYOUT)
    assert (own.min_edge, own.max_edge) == (64, 64)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b"[]", "invalid_value"),
        (b'"a"', "invalid_value"),
        (b"{}", "missing_parameter"),
    ],
)
def test_bytes_that_are_no_request(raw: bytes, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        RequestParser(Limits(), LAYOUT).take(raw)
    assert (refused.value.status, refused.value.code) == (400, code)
