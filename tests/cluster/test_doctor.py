"""`sdxl-ray doctor --address`: what a cluster has, whether its nodes agree, and what is unsafe about it."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sdxl_ray.distributed.capacity import ClusterCapacity, NodeKind
from sdxl_ray.distributed.nodes import Node
from sdxl_ray.doctor import cluster
from sdxl_ray.doctor.cluster import (
    Examined,
    NodeFacts,
    about_this_node,
    authentication,
    autoscaler,
    dashboard,
    least_memory,
    versions,
)
from sdxl_ray.doctor.machine import required
from sdxl_ray.plan.gpu_driver import Gpu
from tests.conftest import Cli, Here
from tests.nodes import Cluster

#: The lowest versions that the project requires.
LOWEST = {name: next(one.version for one in allowed if one.operator == ">=") for name, allowed in required().items()}


def _answer(auth: str = "token", **changed: str) -> NodeFacts:
    names = ("python", "ray", "torch", "deepspeed", "diffusers", "transformers", "peft")
    names += ("accelerate", "Pillow", "pyarrow")
    return NodeFacts(dict.fromkeys(names, "99.0") | LOWEST | changed, (Gpu("NVIDIA L4", 23034),), 2**34, auth)


def test_nodes_that_differ_are_named_with_the_fix() -> None:
    reported = {"10.0.0.1": _answer(), "10.0.0.2": _answer(torch="2.12", ray="2.60.1"), "10.0.0.3": _answer()}
    ray, torch, same = versions(reported)
    assert (torch.name, torch.state) == ("torch versions", "broken")
    assert torch.value == "2.11 on 10.0.0.1, 10.0.0.3; 2.12 on 10.0.0.2"
    assert ray.value == "2.60 on 10.0.0.1, 10.0.0.3; 2.60.1 on 10.0.0.2"
    assert "on every node" in torch.fix
    assert same.value.startswith("the same on every node: python 99.0, deepspeed 0.19, ")
    (same,) = versions({"10.0.0.1": _answer(), "10.0.0.3": _answer()})
    assert same.state == "ok" and "torch 2.11" in same.value


def test_nodes_that_agree_on_what_does_not_work_are_told_the_lowest_version_that_does() -> None:
    alike = _answer(torch="missing", ray="2.10", accelerate="1.0")
    ray, torch, accelerate, same = versions({"10.0.0.1": alike, "10.0.0.2": alike})
    assert (ray.name, ray.value, ray.state) == ("ray", "2.10 on every node", "unsafe")
    assert (torch.name, torch.value, torch.state) == ("torch", "missing on every node", "broken")
    assert (accelerate.value, accelerate.state) == ("1.0 on every node", "broken")
    assert "pip install 'ray>=2.60,<2.61'" in ray.fix and "pip install 'torch>=2.11,<2.14'" in torch.fix
    assert same.state == "ok" and "torch" not in same.value and "ray" not in same.value
    one, differing = (found for found in versions({"a": _answer(), "b": _answer(ray="2.10")}) if "ray" in found.name)
    assert (one.value, one.state) == ("2.10 on b", "unsafe") and differing.name == "ray versions"


def test_memory_is_that_of_the_nodes(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the machine that asks."""
    apart = [Node(str(number), f"10.0.0.{number}", False, {}) for number in range(3)]
    assert least_memory(dict.fromkeys(apart, _answer())) == 2**34
    together = [Node(str(number), "10.0.0.1", False, {}) for number in range(2)]
    assert least_memory(dict.fromkeys([*together, apart[2]], _answer())) == 2**33
    monkeypatch.setattr(cluster, "container_memory_bytes", lambda: 2**20)
    assert about_this_node().memory_bytes == 2**20

    def can_train(memory_bytes: int, answered: int = 2, more_gpus: bool = False) -> list[str]:
        found = Examined([cluster.dashboard("127.0.0.1")], [], answered, memory_bytes, more_gpus)
        monkeypatch.setattr(cluster, "examine_cluster", lambda address, storage: found)
        reported: list[str] = json.loads(here("doctor", "--json", "--address", "10.0.0.1:6379")[1])["can_train"]
        return reported

    assert "can train    lora (2 workers on cpu)" in can_train(2**45)
    assert all(line.startswith("cannot train ") for line in can_train(2**20))
    assert "autoscaler may add GPUs" in can_train(2**45, more_gpus=True)[-1]
    assert can_train(0, answered=0) == ["what can be trained is not known: no node said what it has"]


def test_what_an_autoscaler_may_add_is_said() -> None:
    head, worker = NodeKind({"CPU": 8}, 1), NodeKind({"CPU": 8, "GPU": 1}, 8)
    assert list(autoscaler(ClusterCapacity((head,)))) == []
    (found,) = autoscaler(ClusterCapacity((head,), True, (head, worker)))
    assert found.value == "the cluster may grow to 1 node with 8 CPUs, 8 nodes with 8 CPUs and 1 GPUs"
    assert found.state == "note" and "sdxl-ray plan" in found.fix
    (there,) = autoscaler(ClusterCapacity((head, NodeKind(worker.offers, 1)), True, (head, worker)))
    assert there.state == "ok"
    (endless,) = autoscaler(ClusterCapacity((head,), True, (NodeKind({"CPU": 2}, None),)))
    assert endless.value.endswith("any number of nodes with 2 CPUs")
    (unknown,) = autoscaler(ClusterCapacity((head,), True, None))
    assert unknown.state == "note" and "resources.gpus_per_worker=1" in unknown.fix


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_in_front_of_a_cluster_is_refused_at_once(here: Here, address: str) -> None:
    code, out, err = here("doctor", "--address", address)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: address {address!r} is not that of a Ray cluster") and "give HOST:6379" in err


def test_the_secrets_of_a_storage_are_not_shown() -> None:
    from sdxl_ray.io.storage import Storage

    storage = Storage.of("memory://user:secret@x/y")
    node = Node("1", "10.0.0.1", True, {})
    for blind in ({}, {node: "storage 'memory://x/y' cannot be written: connection refused"}):
        found = cluster._storage(storage, [node], blind)
        assert found.value.startswith("memory://x/y: ") and "secret" not in found.value + found.fix
        assert ("connection refused" in found.value) == bool(blind)


def test_a_node_without_a_token_is_unsafe() -> None:
    assert authentication({"10.0.0.1": _answer()}).state == "ok"
    found = authentication({"10.0.0.1": _answer(), "10.0.0.2": _answer(auth="")})
    assert found.state == "unsafe" and "10.0.0.2" in found.value and "RAY_AUTH_MODE=token" in found.fix


@pytest.mark.parametrize(("host", "state"), [("127.0.0.1", "ok"), ("10.0.0.1", "unsafe"), (None, "note")])
def test_an_open_dashboard_is_unsafe(host: str | None, state: str) -> None:
    found = dashboard(host)
    assert found.state == state
    assert state != "unsafe" or "--dashboard-host=127.0.0.1" in found.fix


@contextmanager
def _something_else() -> Iterator[str]:
    """Inside, a port of loopback speaks, but not as Ray does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                    connection.close()
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def test_an_address_without_a_cluster_is_one_line_soon(cli: Cli) -> None:
    started = time.monotonic()
    ended = cli("doctor", "--address", "127.0.0.1:1")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: no Ray cluster at '127.0.0.1:1'") and ended.stderr.count("\n") == 1
    assert time.monotonic() - started < 60


def test_a_port_where_something_else_listens_is_no_cluster() -> None:
    from sdxl_ray.distributed.cluster import require_answer

    with _something_else() as address, pytest.raises(OSError, match="no Ray answers"):
        require_answer(address)


@pytest.mark.slow
def test_the_doctor_looks_at_every_node(two_nodes: Cluster, tmp_path: Path) -> None:
    words = ["-m", "sdxl_ray", "doctor", "--json", "--address", two_nodes.address, "--storage", str(tmp_path)]
    ended = two_nodes.run(Path(sys.executable).name, *words)
    assert ended.returncode == 0, ended.stderr
    reported = json.loads(ended.stdout)
    found = {one["name"]: one for one in reported["findings"]}
    assert found["nodes"]["value"] == "2, 2 CPUs, 0 GPUs"
    head, node = (next(one for name, one in found.items() if name.startswith(kind)) for kind in ("head ", "node "))
    assert head["value"].startswith("1 CPUs, ") and node["value"].endswith("no GPU")
    assert found["versions"]["value"].startswith("the same on every node")
    assert found["storage"]["value"] == f"{tmp_path}: seen by every node"
    assert found["authentication"]["value"] == "token, on every node"
    assert found["dashboard"]["value"] == "on loopback only"
    assert reported["state"] == "ok"
    assert "can train    tiny_lora (2 workers on cpu)" in reported["can_train"]
    assert "autoscaler" not in found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wrong_token_is_one_line(two_nodes: Cluster) -> None:
    words = ["-m", "sdxl_ray", "doctor", "--address", two_nodes.address]
    # To a given address Ray sends a token only where the environment says so, even if there is one.
    unsaid = {name: value for name, value in two_nodes.environment.items() if name != "RAY_AUTH_MODE"}
    for client, environment, says in (
        (two_nodes, {"RAY_AUTH_MODE": "disabled"}, "none is sent"),
        (replace(two_nodes, environment=unsaid), {}, "none is sent"),
        (two_nodes, {"RAY_AUTH_TOKEN": "b" * 64}, "another"),
        (
            two_nodes,
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nowhere"},
            "cannot be opened or is empty: /nowhere",
        ),
    ):
        ended = client.run(Path(sys.executable).name, *words, **environment)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.count("\n") == 1 and says in ended.stderr and "RAY_AUTH_MODE=token" in ended.stderr


@pytest.mark.slow
def test_a_storage_that_not_every_node_sees_is_refused(two_nodes: Cluster, apart: Path) -> None:
    python = Path(sys.executable).name
    where = ["--address", two_nodes.address, "--storage", str(apart)]
    doctor = two_nodes.run(python, "-m", "sdxl_ray", "doctor", *where)
    assert doctor.returncode == 1, doctor.stderr
    assert f"{apart}: not seen by 1 of 2 nodes" in doctor.stdout and "every node mounts" in doctor.stdout
    subject = ["data.images=subject:robot", "data.subject=sks robot"]
    train = two_nodes.run(python, "-m", "sdxl_ray", "train", "tiny_lora", *subject, *where)
    assert train.returncode == 2
    last = train.stderr.splitlines()[-1]
    assert last.startswith(f"error: storage '{apart}' is not seen by 1 of 2 nodes (")
    assert list(apart.iterdir()) == []
