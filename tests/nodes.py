"""Real Ray nodes, as processes of `ray start --block`: own ports, own folder, a token, ended by their ids."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.bucket import free_port

BIN = Path(sys.executable).parent


@dataclass
class Node:
    """One `ray start --block` and what it started; `command` goes before it (to enter a network, for example)."""

    process: subprocess.Popen[bytes]
    log: Path
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def processes(self) -> list[psutil.Process]:
        """Everything that this node ever started and that still runs, as far as it was looked at."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.seen.setdefault(child.pid, child)
        return [one for one in self.seen.values() if one.is_running()]

    def raylet(self) -> psutil.Process:
        """The node's raylet."""
        return next(one for one in self.processes() if "raylet/raylet" in " ".join(one.cmdline()[:1]))

    def kill(self) -> None:
        """SIGKILL to the whole node, as when its machine goes."""
        running = self.processes()
        self.process.kill()
        for one in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()
        psutil.wait_procs(running, timeout=10)


@dataclass
class Cluster:
    """A head with a dashboard on loopback, and workers; `environment` is what a client needs."""

    address: str
    dashboard: str
    environment: dict[str, str]
    temp: Path
    nodes: list[Node] = field(default_factory=list)

    def run(
        self, *words: str, timeout: float = 300, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of the virtual environment, as a client of the cluster."""
        command = [str(BIN / words[0]), *words[1:]]
        env = {**self.environment, **environment}
        return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)

    def add(self, address: str = "127.0.0.1", prefix: Sequence[str] = (), cpus: int = 1, **environment: str) -> Node:
        """Start another node and wait until the cluster knows it."""
        words = ["--address", self.address, *_common(address, cpus)]
        node = _start(words, self.temp, {**self.environment, **environment}, prefix)
        self.nodes.append(node)
        return node


@contextlib.contextmanager
def cluster(
    temp: Path,
    *,
    address: str = "127.0.0.1",
    prefix: Sequence[str] = (),
    more: Sequence[str] = (),
    **environment: str,
) -> Iterator[Cluster]:
    """Inside, a head of one CPU runs at `address`, with token authentication; afterwards no process of it is left.

    temp: a short path, since Ray puts sockets below it. more: words of `ray start`.
    """
    gcs, dashboard = free_port(), free_port()
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "SDXL_RAY_STORAGE")}
    env |= {
        "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a" * 64,
        "RAY_worker_niceness": "0",
        "RAY_TMPDIR": str(temp),
        **environment,
    }
    words = ["--head", "--port", str(gcs), "--ray-client-server-port", str(free_port())]
    words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--temp-dir", str(temp)]
    made = Cluster(f"{address}:{gcs}", f"http://127.0.0.1:{dashboard}", env, temp)
    try:
        made.nodes.append(_start([*words, *_common(address, 1), *more], temp, env, prefix))
        yield made
    finally:
        for node in reversed(made.nodes):
            node.kill()


def _common(address: str, cpus: int) -> list[str]:
    ports = {name: str(free_port()) for name in ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")}
    ports |= {"metrics-export-port": str(free_port()), "runtime-env-agent-port": str(free_port())}
    words = [word for name, port in ports.items() for word in (f"--{name}", port)]
    return [*words, "--node-ip-address", address, "--num-cpus", str(cpus), "--num-gpus", "0", "--block"]


def _start(words: Sequence[str], temp: Path, env: dict[str, str], prefix: Sequence[str]) -> Node:
    """A node that has started. Ray gives its parts half a minute, which a busy machine may need twice."""
    for attempt in range(3):
        try:
            return _start_once(words, temp, env, prefix)
        except RuntimeError as error:
            if attempt == 2 or "timed out during startup" not in str(error):
                raise
    raise AssertionError("the last attempt returns or raises")


def _start_once(words: Sequence[str], temp: Path, env: dict[str, str], prefix: Sequence[str]) -> Node:
    temp.mkdir(parents=True, exist_ok=True)
    log = temp / f"start-{time.monotonic_ns()}.log"
    memory = ["--object-store-memory", str(200 * 2**20), "--disable-usage-stats"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*prefix, str(BIN / "ray"), "start", *words, *memory], env=env, stdout=out, stderr=subprocess.STDOUT
        )
    node = Node(process, log)
    deadline = time.monotonic() + 120
    while b"Ray runtime started" not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            node.kill()
            raise RuntimeError(f"ray start failed: {log.read_text()[-2000:]}")
        time.sleep(0.2)
    node.processes()
    return node


def wait_for(what: str, happened: object, seconds: float = 120) -> None:
    """Poll `happened()` until it is true. Raises AssertionError with `what`."""
    deadline = time.monotonic() + seconds
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.25)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a client that may still run."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
