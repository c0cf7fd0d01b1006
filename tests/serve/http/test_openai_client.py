"""The endpoint through the newest `openai` client: its whole signature, its types, and links to images."""

from __future__ import annotations

import base64
import inspect
import io
from typing import Any

import openai
import pytest
import requests
from openai.types import ImagesResponse
from openai.types.image_gen_completed_event import ImageGenCompletedEvent
from openai.types.image_gen_partial_image_event import ImageGenPartialImageEvent
from PIL import Image

from tests.serve.client import PATH, Client
from tests.serve.engine.plain import levels

pytestmark = [pytest.mark.slow, pytest.mark.shares("url")]

#: Of every field of `images.generate`: the values that are accepted, and those that are refused.
FIELDS: dict[str, tuple[list[Any], list[Any]]] = {
    "prompt": (["a dog"], ["", None]),
    "background": (["auto", "opaque", None], ["transparent"]),
    "complexity": (["low", None], ["medium", "high"]),
    "frame_count": ([None], [9]),
    "frame_duration_ms": ([None], [200]),
    "model": (["base", "round", None], ["dall-e-3", "gpt-image-1"]),
    "moderation": (["auto", "low", None], ["high"]),
    "n": ([1, 2, None], [0, 11]),
    "output_compression": ([100, None], [50, 101, -1]),  # of a PNG file, which is the default
    "output_format": (["png", "jpeg", "webp", None], ["gif", "svg"]),
    "partial_images": ([0, None], [1, 4]),  # without a stream
    "quality": (["auto", "standard", "low", None], ["medium", "high", "xhigh", "max", "hd"]),
    "response_format": (["b64_json", "url", None], ["file"]),
    "safety_identifier": (["a-user", "", None], [7]),
    "size": (["auto", "64x64", "128x64", None], ["1024x1024", "1536x1024", "512x512", "256x256", "small"]),
    "stream": ([False, None], ["yes"]),
    "style": (["vivid", None], ["natural"]),
    "svg": ([None], [{"model": "gpt-5"}]),
    "user": (["a-user", "", None], [7]),
}
OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
QUICK = {"extra_body": {"num_inference_steps": 1, "seed": 1}}


@pytest.fixture
def api(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_every_field_of_the_client_is_accepted_or_refused_by_name(api: openai.OpenAI) -> None:
    assert set(inspect.signature(openai.resources.images.Images.generate).parameters) - OF_THE_CLIENT == set(FIELDS)
    for field, (accepted, refused) in FIELDS.items():
        for value in accepted:
            answer: Any = api.images.generate(**{"prompt": "a dog", field: value, **QUICK})  # type: ignore[call-overload]
            assert ImagesResponse.model_validate(answer.model_dump()).data, (field, value)
        for value in refused:
            with pytest.raises(openai.APIStatusError) as error:
                api.images.generate(**{"prompt": "a dog", field: value, **QUICK})  # type: ignore[call-overload]
            problem = error.value
            assert (problem.status_code, problem.param) == (404 if field == "model" else 400, field), (field, value)
            assert field in problem.message and str(value) in problem.message, problem.message


def test_responses_and_events_have_what_the_client_declares(api: openai.OpenAI) -> None:
    answer = api.images.generate(prompt="a dog", output_format="webp", size="64x32", extra_body=QUICK["extra_body"])
    assert (answer.output_format, answer.size, answer.background) == ("webp", "64x32", "opaque")
    assert answer.usage and answer.usage.input_tokens_details.text_tokens == answer.usage.total_tokens == 0
    for asked, sent in (
        ({}, {"background": "opaque", "quality": "auto", "output_format": "png", "size": "64x64"}),
        ({"background": "auto", "quality": "low"}, {"background": "auto", "quality": "low"}),
        ({"quality": "standard", "output_format": "jpeg", "size": "64x32"}, {"quality": "auto", "size": "64x32"}),
        ({"output_format": "webp", "output_compression": 10}, {"output_format": "webp"}),
    ):
        extra = {"extra_body": {"num_inference_steps": 4}}
        events = [
            event.model_dump()
            for event in api.images.generate(prompt="a dog", stream=True, partial_images=1, **asked, **extra)  # type: ignore[call-overload]
        ]
        kinds = (ImageGenPartialImageEvent, ImageGenCompletedEvent)
        assert len(events) == 2
        for kind, event in zip(kinds, events, strict=True):
            # `model_validate` checks what the client itself takes on trust: that required fields are there.
            checked = kind.model_validate(event).model_dump()
            assert {name: checked[name] for name in sent} == sent
            image = Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))
            assert image.format == event["output_format"].upper()


def test_compression_is_honoured(client: Client) -> None:
    for output_format in ("jpeg", "webp"):
        sizes = [
            len(client.draw(output_format=output_format, output_compression=quality).data[0])
            for quality in (0, 40, 92, 100)
        ]
        assert sizes == sorted(set(sizes))
        assert len(client.draw(output_format=output_format).data[0]) == sizes[2]
    lossless = client.draw(output_compression=5)
    assert (lossless.status, lossless.body["error"]["param"]) == (400, "output_compression")
    assert "set output_format to jpeg or webp" in lossless.body["error"]["message"]


def test_images_are_linked_to(api: openai.OpenAI, client: Client) -> None:
    for output_format in ("png", "jpeg", "webp"):
        linked = client.draw(n=2, output_format=output_format, response_format="url")
        assert [datum.keys() for datum in linked.body["data"]] == [{"url", "seed"}] * 2
        assert linked.headers["cache-control"] == "no-store"
        links = [datum["url"] for datum in linked.body["data"]]
        assert len(set(links)) == 2 and all(link.startswith(f"{client.url}/") for link in links)
        for link in links:
            got = requests.get(link, timeout=30)
            assert (got.status_code, got.headers["content-type"]) == (200, f"image/{output_format}")
            image = Image.open(io.BytesIO(got.content))
            assert (image.format, image.size) == (output_format.upper(), (64, 64))
            if output_format == "png":
                assert levels(image, client.draw(seed=int(image.info["seed"])).images[0]) <= 1
            caching = got.headers["cache-control"]
            assert caching.startswith("private, max-age=") and 3500 < int(caching.split("=")[1].split(",")[0]) <= 3600
            head = requests.head(link, timeout=30)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(len(got.content))
    for name in ("x", "A" * 32 + ".png", links[0].rpartition("/")[2] + "x"):
        gone = requests.get(f"{client.url}/image-files/{name}", timeout=30)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "image_not_found")
    streamed = client.draw(response_format="url", stream=True)
    assert (streamed.status, streamed.body["error"]["param"]) == (400, "response_format")
    elsewhere = {"Host": "images.example.org", "X-Forwarded-Proto": "https"}
    answer = api.images.generate(prompt="a dog", response_format="url", extra_headers=elsewhere, **QUICK)
    assert (answer.data or [])[0].url.startswith("https://images.example.org/image-files/")  # type: ignore[union-attr]


def test_what_is_not_offered_says_so(api: openai.OpenAI) -> None:
    image = io.BytesIO()
    Image.new("RGBA", (1024, 1024)).save(image, "PNG", compress_level=0)  # 4 MB, more than a body may have
    variation = inspect.unwrap(api.images.create_variation)  # without its warning that OpenAI has retired it
    for call in (
        lambda: api.images.edit(image=image.getvalue(), prompt="a dog"),
        lambda: variation(api.images, image=image.getvalue()),
        lambda: api.chat.completions.create(model="base", messages=[{"role": "user", "content": "hello"}]),
        lambda: api.embeddings.create(model="base", input="hello"),
        lambda: api.responses.create(model="base", input="hello"),
    ):
        with pytest.raises(openai.NotFoundError, match=r"is not offered; .* POST /v1/images/generations") as error:
            call()
        assert error.value.code == "not_offered"


def test_models_are_listed_and_retrieved_as_openai_does(api: openai.OpenAI, url: str) -> None:
    listed = api.models.list()
    assert listed.object == "list"
    for model in listed:
        openai.types.Model.model_validate(api.models.retrieve(model.id).model_dump())
    for path in ("/v1/models/", "/v1/models/base/"):
        assert requests.get(url + path, timeout=30, allow_redirects=False).status_code == 200
    with pytest.raises(openai.NotFoundError, match="choose from base, lost, round, whole, wordy"):
        api.models.retrieve("dall-e-3")


def test_headers_of_clients_are_no_obstacle(url: str) -> None:
    body = {"prompt": "a dog", "num_inference_steps": 1}
    for headers in (
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": "Application/JSON"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer none"},
        {"Authorization": "Basic dTpw"},
        {"OpenAI-Organization": "org-1", "OpenAI-Project": "proj-1", "OpenAI-Beta": "assistants=v2"},
    ):
        answer = requests.post(url + PATH + "/", json=body, headers=headers, timeout=60, allow_redirects=False)
        assert answer.status_code == 200, headers
