"""A client for the tests: requests by keyword, images as PIL, many at once, and the replicas behind it."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import requests
from PIL import Image

PATH = "/v1/images/generations"
QUICK: dict[str, Any] = {"prompt": "a photo of a dog", "num_inference_steps": 4, "guidance_scale": 5.0, "seed": 1}


@dataclass(frozen=True)
class Reply:
    """What came back, after how many seconds, and when, by `time.monotonic()`."""

    status: int
    seconds: float
    ended: float
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def data(self) -> list[bytes]:
        """The files."""
        return [base64.b64decode(datum["b64_json"]) for datum in self.body["data"]]

    @property
    def images(self) -> list[Image.Image]:
        """The images."""
        return [Image.open(io.BytesIO(data)) for data in self.data]


class Client:
    """One endpoint."""

    def __init__(self, url: str) -> None:
        self.url = url

    def draw(self, **fields: Any) -> Reply:
        """POST with `QUICK` below the fields."""
        start = time.monotonic()
        answer = requests.post(self.url + PATH, json={**QUICK, **fields}, timeout=120)
        ended = time.monotonic()
        return Reply(answer.status_code, ended - start, ended, answer.headers, answer.json())

    def all(self, *bodies: dict[str, Any]) -> list[Reply]:
        """All at once."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.draw(**body), bodies))

    def refused(self, raw: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        """POST bytes as they are; status and the inside of the error envelope."""
        answer = requests.post(
            self.url + PATH, data=raw, headers={"Content-Type": "application/json", **headers}, timeout=60
        )
        return answer.status_code, answer.json()["error"]


@dataclass
class Load:
    """An open loop: a request every so often, whatever becomes of the others."""

    client: Client
    replies: list[Reply] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    @contextmanager
    def at(self, rate: float, body: Callable[[int], dict[str, Any]], threads: int = 128) -> Iterator[None]:
        """`rate` requests a second while the block lasts, the first at once; all have ended after it."""
        going = True

        def one(index: int) -> None:
            try:
                self.replies.append(self.client.draw(**body(index)))
            except (requests.RequestException, ValueError, KeyError) as error:
                self.errors.append(error)

        def loop(pool: ThreadPoolExecutor) -> None:
            start, index = time.monotonic(), 0
            while going:
                pool.submit(one, index)
                index += 1
                time.sleep(max(0.0, start + index / rate - time.monotonic()))

        with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as clock:
            clock.submit(loop, pool)
            try:
                yield
            finally:
                going = False

    def statuses(self) -> set[int]:
        """Every status that was seen."""
        return {reply.status for reply in self.replies}


def replicas(deployment: str = "weights") -> list[psutil.Process]:
    """Processes of a deployment's replicas in this session's own Ray that are there, not those that are starting."""
    # Ray puts what an actor is doing into its title.
    title = re.compile(rf"ray::ServeReplica:sdxl-ray:{deployment}(\.(?!__init__)\w+)?\s*")
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended while it was looked at
            if title.fullmatch("".join(process.cmdline()[:1]).partition("(")[0]):
                found.append(process)
    return found


def describe(count: int, deployment: str = "weights") -> dict[int, dict[str, Any]]:
    """What `count` replicas say of themselves, by process id."""
    from ray import serve

    from serve.local import APPLICATION

    handle = serve.get_deployment_handle(deployment, APPLICATION)
    said: dict[int, dict[str, Any]] = {}
    until = time.monotonic() + 60
    while len(said) < count and time.monotonic() < until:
        answer = handle.describe.remote().result(timeout_s=60)
        said[answer["pid"]] = answer
    return said


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> float:
    """Seconds until it is so; fails when it never is."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - start
