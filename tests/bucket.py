"""A store on loopback that speaks S3 (moto's server), and a bucket in it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Bucket:
    """`url("runs")` is a folder in it; the server can be stopped and go on, and an object changed behind our back."""

    address: str
    process: subprocess.Popen[bytes]

    def url(self, folder: str) -> str:
        return f"s3://bucket/{folder}"

    def whole_url(self, folder: str) -> str:
        """With the server's address in it, for processes that began before this server and know nothing of it."""
        where = f"endpoint_override={self.address.removeprefix('http://')}&scheme=http&region=us-east-1"
        return f"{self.url(folder)}?{where}"

    def client(self) -> object:
        import boto3

        return boto3.client("s3", endpoint_url=self.address)

    def names(self, folder: str = "") -> list[str]:
        """Every object below a folder."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=folder)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def read(self, name: str) -> bytes:
        return bytes(self.client().get_object(Bucket="bucket", Key=name)["Body"].read())

    def write(self, name: str, data: bytes) -> None:
        self.client().put_object(Bucket="bucket", Key=name, Body=data)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Inside, the server takes connections and answers none."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def bucket(monkeypatch: pytest.MonkeyPatch, host: str = "127.0.0.1") -> Iterator[Bucket]:
    """Inside, the environment's S3 is a server of our own with an empty bucket `bucket`."""
    port = free_port()
    address = f"http://{host}:{port}"
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address, "AWS_ENDPOINT_URL_S3": address}.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(host, port, process)
        served = Bucket(address, process)
        served.client().create_bucket(Bucket="bucket")
        yield served
    finally:
        process.kill()
        process.wait()


def _wait(host: str, port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"moto's server did not come up at {host}:{port} (exit code {process.poll()})")
