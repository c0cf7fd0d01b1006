"""Two hosts with addresses of their own (network namespaces), no common disk, a store between them; one is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import read
from sdxl_ray.io.storage import Storage
from tests.bucket import Bucket, bucket
from tests.distributed.conftest import LORA, examples, losses, words
from tests.nodes import Cluster, Node, cluster, stop, wait_for

pytestmark = [pytest.mark.shares("cuts"), pytest.mark.chaos]

#: Seconds in which a lost host is noticed; Ray's own are about half a minute.
NOTICED = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Net:
    """Two ends of a cable: `here` is this machine, `there` is inside the namespace."""

    name: str
    here: str
    there: str

    @property
    def prefix(self) -> list[str]:
        """What goes before a command to run it on the other host."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Pull the cable: nothing is said, packets just stop."""
        _ip("link", "set", f"{self.name}h", "down")


@contextmanager
def net(number: int) -> Iterator[Net]:
    """Inside, another host hangs on a cable. Skips the test where namespaces cannot be made."""
    made = Net(f"sr{os.getpid() % 10000}n{number}", f"10.{200 + number}.77.1", f"10.{200 + number}.77.2")
    here, there = f"{made.name}h", f"{made.name}t"
    if shutil.which("ip") is None:
        pytest.skip("no ip command: install iproute2")
    try:
        _ip("netns", "add", made.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there)
        _ip("link", "set", there, "netns", made.name)
        _ip("addr", "add", f"{made.here}/24", "dev", here)
        _ip("link", "set", here, "up")
        for words_ in (
            ["addr", "add", f"{made.there}/24", "dev", there],
            ["link", "set", there, "up"],
            ["link", "set", "lo", "up"],
        ):
            _ip("-n", made.name, *words_)
        yield made
    finally:
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", here)
        _ip("netns", "del", made.name)


@dataclass
class Hosts:
    """A head here and a worker on the other host, each with a scratch of its own."""

    net: Net
    cluster: Cluster
    store: Bucket
    folder: Path

    def join(self, name: str) -> Node:
        """A machine joins on the other host, with nothing on its disk."""
        settings = {"SDXL_RAY_SCRATCH": str(self.folder / name), "GLOO_SOCKET_IFNAME": f"{self.net.name}t"}
        return self.cluster.add(self.net.there, self.net.prefix, **settings)

    def train(self, recipe: Recipe) -> subprocess.Popen[str]:
        """The command line, on the head."""
        command = [sys.executable, "-m", "sdxl_ray", "train", "tiny_dreambooth_lora", *words(recipe)]
        command += ["--name", "run", "--address", self.cluster.address, "--storage", self.store.url("runs")]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.cluster.environment, stderr=subprocess.PIPE, text=True
        )

    def has(self, name: str) -> bool:
        return f"runs/run/{name}" in self.store.names()


@contextmanager
def hosts(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Inside, two hosts run, each with one CPU."""
    folder = Path(tempfile.mkdtemp(prefix="sr"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        cable = stack.enter_context(net(number))
        store = stack.enter_context(bucket(monkeypatch, cable.here))
        # gloo takes the address of the host name, which both hosts share here.
        here = {"SDXL_RAY_SCRATCH": str(folder / "head"), "GLOO_SOCKET_IFNAME": f"{cable.name}h", **NOTICED}
        head = stack.enter_context(cluster(folder / "t", address=cable.here, **here))
        made = Hosts(cable, head, store, folder)
        made.join("first")
        yield made


def _result(made: Hosts, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run as a third machine would fetch it."""
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(scratch))
    storage = Storage.of(made.store.url("runs"))
    storage.get_folder(storage.root / "run")
    return storage.root / "run"


@pytest.mark.exhaustive
def test_a_host_is_cut_off_and_the_run_goes_on_with_what_is_left(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hosts(0, monkeypatch) as made:
        driver = made.train(override(LORA, {"parallel.workers": [1, 2]}))
        try:
            wait_for("a checkpoint", lambda: made.has("checkpoints/step-0000005/manifest.json"), 400)
            assert made.has("checkpoints/step-0000005/state-00001.safetensors")
            made.net.cut()
            _, reported = driver.communicate(timeout=300)
        finally:
            stop(driver)
        assert driver.returncode == 0, reported
        fetched = _result(made, tmp_path, monkeypatch)
    workers = read(fetched / "records", "steps")["workers"].to_pylist()
    assert workers[0] == 2 and workers[-1] == 1
    assert examples(fetched) == examples(undisturbed)
    ours, theirs = ([float.fromhex(loss) for loss in losses(folder)] for folder in (fetched, undisturbed))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert Artifact.open(fetched / "artifact").manifest.step == LORA.optim.steps


@pytest.mark.exhaustive
def test_a_raylet_is_killed_and_the_run_waits_for_another_host(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hosts(1, monkeypatch) as made:
        driver = made.train(LORA)
        try:
            wait_for("a checkpoint", lambda: made.has("checkpoints/step-0000005/manifest.json"), 400)
            made.cluster.nodes[-1].raylet().kill()
            made.cluster.nodes[-1].kill()
            made.join("second")
            _, reported = driver.communicate(timeout=400)
        finally:
            stop(driver)
        assert driver.returncode == 0, reported
        fetched = _result(made, tmp_path, monkeypatch)
    assert losses(fetched) == losses(undisturbed)
    assert examples(fetched) == examples(undisturbed)
    assert Artifact.open(fetched / "artifact").manifest.files == Artifact.open(undisturbed / "artifact").manifest.files
