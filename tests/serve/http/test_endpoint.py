"""The endpoint as clients use it: OpenAI's client, the same images as the plain pipeline, events, bad requests."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from pathlib import Path

import openai
import pytest
import requests
import torch
from PIL import Image

from sdxl_ray.config.schema import Base
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.models.pipeline import generate, load_pipeline
from serve.engine.request import AdapterUse, ImageRequest
from tests.serve.client import PATH, QUICK, Client, describe, wait_for
from tests.serve.engine.plain import Plain, levels

pytestmark = [pytest.mark.slow, pytest.mark.shares("url")]


@pytest.fixture
def api(url: str) -> openai.OpenAI:
    """OpenAI's own client, as it comes."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def _plain(artifact: Path | None, prompt: str, seed: int) -> Image.Image:
    pipe = load_pipeline(Base(), Artifact.open(artifact) if artifact else None, dtype=torch.float32, device="cpu")
    return generate(pipe, [prompt], seeds=[seed], num_inference_steps=4, guidance_scale=5.0)[0]


def test_openais_client_lists_models_and_gets_images(api: openai.OpenAI, artifacts: dict[str, Path]) -> None:
    models = {model.id: model.model_extra for model in api.models.list()}
    assert list(models) == ["base", "round", "wordy", "whole", "lost"]
    assert {name: extra["kind"] for name, extra in models.items() if extra} == {
        "base": "base", "round": "lora", "wordy": "lora", "whole": "full", "lost": "unknown",
    }  # fmt: skip
    assert [(extra["adapters"], extra["group"]) for extra in models.values() if extra] == [
        *[(["round", "wordy"], "weights")] * 3, (["round", "wordy"], "weights-whole"), ([], None),
    ]  # fmt: skip
    assert api.models.retrieve("round").model_extra["artifact"] == Artifact.open(artifacts["round"]).hash  # type: ignore[index]
    extra = {"seed": 7, "num_inference_steps": 4, "guidance_scale": 5.0}
    seen = []
    for name, more in (
        ("base", {}),
        ("round", {}),
        ("whole", {}),
        ("base", {"adapters": [{"name": "round", "scale": 0.5}, {"name": "wordy", "up": 0.0}]}),
    ):
        answer = api.images.generate(model=name, prompt="a dog", n=2, size="64x64", extra_body={**extra, **more})
        assert answer.data
        assert len(answer.data) == 2
        image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
        assert (image.format, image.size, image.info["seed"]) == ("PNG", (64, 64), "7")  # type: ignore[attr-defined]
        assert "dog" not in json.dumps({key: str(value) for key, value in image.info.items()})
        seen.append(image.tobytes())
    assert len(set(seen)) == 4


def test_openais_client_streams(api: openai.OpenAI) -> None:
    extra = {"seed": 7, "num_inference_steps": 8}
    plain = api.images.generate(model="round", prompt="a dog", extra_body=extra)
    events = list(api.images.generate(model="round", prompt="a dog", stream=True, partial_images=2, extra_body=extra))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1]  # type: ignore[union-attr]
    assert events[-1].b64_json == (plain.data or [])[0].b64_json
    assert len({event.b64_json for event in events}) == 3


def test_openais_client_sends_a_long_prompt_and_learns_what_is_cut_off(api: openai.OpenAI) -> None:
    def truncated(prompt: str, **more: object) -> object:
        answer = api.images.generate(prompt=prompt, extra_body={"num_inference_steps": 1, **more})
        return answer.model_extra["sdxl_ray"]["truncated"]  # type: ignore[index]

    assert truncated("dog " * 90) == {}  # three chunks of the embedded base's 30 tokens
    assert truncated("dog " * 90 + "a cat") == {"prompt": {"tokens": 92, "used_tokens": 90, "text": "a cat"}}
    cut = {"negative_prompt": {"tokens": 31, "used_tokens": 30, "text": "cat"}}
    assert truncated("a dog", negative_prompt="dog " * 30 + "cat", max_token_length=75) == cut
    with pytest.raises(openai.BadRequestError, match="max_token_length"):
        truncated("a dog", max_token_length=77)


def test_openais_client_gets_its_own_errors(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'round'"):
        api.images.generate(model="rounds", prompt="a dog")
    with pytest.raises(openai.BadRequestError, match="the nearest is 64") as refused:
        api.images.generate(model="base", prompt="a dog", size="63x64")
    assert (refused.value.param, refused.value.code) == ("size", "invalid_value")
    with pytest.raises(openai.NotFoundError, match="no such folder"):
        api.images.generate(model="lost", prompt="a dog")


def test_images_are_those_of_the_plain_pipeline(client: Client, artifacts: dict[str, Path]) -> None:
    """Alone, and several models at once, so that they share batches."""
    sources = {"base": None, "round": artifacts["round"], "whole": artifacts["whole"]}
    expected = {name: _plain(path, "a red robot", 3) for name, path in sources.items()}
    for name, image in expected.items():
        reply = client.draw(model=name, prompt="a red robot", seed=3)
        assert reply.status == 200
        assert levels(reply.images[0], image) <= 1
        assert reply.headers["x-sdxl-ray-artifact"] == (Artifact.open(path).hash if (path := sources[name]) else "")
    both = (AdapterUse("round", 0.5, down=0.0), AdapterUse("wordy"))
    plain = Plain({name: Artifact.open(artifacts[name]) for name in ("round", "wordy")})
    mixed = plain.draw(ImageRequest("a red robot", seed=3, num_inference_steps=4, guidance_scale=5.0, adapters=both))
    adapters = [{"name": "round", "scale": 0.5, "down": 0.0}, {"name": "wordy"}]
    body = {"prompt": "a red robot", "seed": 3}
    replies = client.all(
        {**body, "model": "base"},
        {**body, "model": "round"},
        {**body, "model": "base", "adapters": adapters},
        {**body, "model": "base", "num_inference_steps": 9},
        {**body, "model": "whole"},
    )
    wanted = [expected["base"], expected["round"], mixed, None, expected["whole"]]
    for reply, image in zip(replies, wanted, strict=True):
        assert reply.status == 200, reply.body
        assert image is None or levels(reply.images[0], image) <= 1


def test_a_reply_says_how_it_was_made(client: Client) -> None:
    reply = client.draw(model="round", n=2, seed=11, output_format="webp", size="64x32")
    assert [datum["seed"] for datum in reply.body["data"]] == [11, 12]
    assert [(image.format, image.size) for image in reply.images] == [("WEBP", (64, 32))] * 2
    assert reply.headers["x-sdxl-ray-seed"] == "11"
    times = reply.body["sdxl_ray"]["times"]
    assert len(times) == 2
    assert all(0 < entry["denoise_ms"] <= entry["total_ms"] for entry in times)
    assert 0 < float(reply.headers["x-sdxl-ray-total-ms"]) <= reply.seconds * 1000
    assert reply.body["sdxl_ray"]["adapters"].keys() == {"round"}
    assert 0 <= client.draw(seed=None).body["data"][0]["seed"] < 2**32


def test_health_readiness_and_description(url: str) -> None:
    assert requests.get(f"{url}/health", timeout=30).json() == {"status": "ok"}
    ready = requests.get(f"{url}/ready", timeout=30)
    states = {"base": "ready", "round": "ready", "wordy": "ready", "whole": "ready", "lost": "stopped"}
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "variants": states})
    schema = requests.get(f"{url}/openapi.json", timeout=30).json()["components"]["schemas"]["ImageRequest"]
    assert schema["properties"]["n"]["anyOf"][0]["maximum"] == 4
    assert schema["properties"]["model"]["anyOf"][0]["enum"] == ["base", "round", "wordy", "whole"]
    missing = requests.get(f"{url}/v1/nothing", timeout=30)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = requests.get(url + PATH, timeout=30)
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["error"]["code"]) == (
        405, "POST", "method_not_allowed",
    )  # fmt: skip


def test_bodies_that_are_no_request(client: Client) -> None:
    assert client.refused(b'{"prompt": "a"')[0] == 400
    assert client.refused(b'{"prompt": "a", "guidance_scale": NaN}')[1]["param"] == "guidance_scale"
    assert client.refused(b"[" * 60_000)[1]["code"] == "invalid_json"
    assert client.refused(b'{"prompt": "a", "stpes": 3}')[1]["code"] == "unknown_parameter"
    assert client.refused(json.dumps(QUICK).encode(), **{"Content-Type": "text/plain"})[0] == 415
    assert client.refused(json.dumps({"prompt": "a" * 70_000}).encode()) == (
        413,
        {
            "message": "the body is larger than 65,536 bytes",
            "type": "invalid_request_error",
            "param": None,
            "code": "body_too_large",
        },
    )


def test_an_endless_body_is_cut_off_as_it_arrives(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = ("Host: x", "Content-Type: application/json", "Transfer-Encoding: chunked", "", "")
        connection.sendall(f"POST {PATH} HTTP/1.1\r\n".encode() + "\r\n".join(head).encode())
        sent = 0
        with pytest.raises(OSError):  # reset or broken pipe, as it comes
            while sent < 2**30:
                sent += connection.send(b"10000\r\n" + b"a" * 0x10000 + b"\r\n")
    assert sent < 2**27
    assert requests.get(f"{url}/health", timeout=30).ok


def test_a_client_that_goes_frees_its_place(url: str) -> None:
    """100 steps take seconds; a client that leaves in the middle has its place back at once."""
    body = json.dumps({**QUICK, "num_inference_steps": 100, "size": "128x128"}).encode()
    host, port = url.removeprefix("http://").split(":")

    def busy() -> int:
        return sum(said["engine"]["in_flight"] for said in describe(2).values())

    abandoned = sum(said["engine"]["abandoned"] for said in describe(2).values())
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        wait_for(lambda: busy() > 0)
        before = sum(said["engine"]["steps"] for said in describe(2).values())
    gone = time.monotonic()
    wait_for(lambda: busy() == 0, 10)
    took = time.monotonic() - gone
    after = describe(2).values()
    assert sum(said["engine"]["abandoned"] for said in after) == abandoned + 1
    step_s = max(said["engine"]["step_ms"] for said in after) / 1000
    # The message has to travel: what the steps during it add up to is not more than that time.
    assert sum(said["engine"]["steps"] for said in after) - before <= took / step_s + 2
    assert sum(said["engine"]["steps"] for said in after) - before < 90


def test_an_image_that_is_late_is_given_up(url: str) -> None:
    from ray import serve

    from serve.local import APPLICATION
    from serve.replica.messages import ImageOrder, Refusal

    request = ImageRequest("a dog", seed=1, num_inference_steps=100, height=128, width=128)
    handle = serve.get_deployment_handle("weights", APPLICATION)
    answer = handle.draw.remote(ImageOrder("base", request, "png", seconds=0.2)).result(timeout_s=60)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.code) == (503, "deadline_passed")
    wait_for(lambda: not any(said["engine"]["in_flight"] for said in describe(2).values()), 5)
