"""`sdxl-ray doctor --address`: what a cluster has, whether its nodes agree, and what is unsafe about it."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdxl_ray.distributed.clusterdoctor import Answer, authentication, dashboard, versions
from sdxl_ray.plan.driver import Gpu
from tests.conftest import Cli, Here
from tests.nodes import Cluster


def _answer(auth: str = "token", **changed: str) -> Answer:
    names = ("python", "ray", "torch", "deepspeed", "diffusers", "transformers", "peft")
    return Answer(dict.fromkeys(names, "1.0") | changed, (Gpu("NVIDIA L4", 23034),), 2**34, auth)


def test_nodes_that_differ_are_named_with_the_fix() -> None:
    told = {"10.0.0.1": _answer(), "10.0.0.2": _answer(torch="2.0", ray="3"), "10.0.0.3": _answer()}
    ray, torch = versions(told)
    assert (torch.name, torch.state) == ("torch versions", "broken")
    assert torch.value == "1.0 on 10.0.0.1, 10.0.0.3; 2.0 on 10.0.0.2"
    assert ray.value == "1.0 on 10.0.0.1, 10.0.0.3; 3 on 10.0.0.2"
    assert "on every node" in torch.fix
    (same,) = versions({"10.0.0.1": _answer(), "10.0.0.3": _answer()})
    assert same.state == "ok" and "torch 1.0" in same.value


def test_a_node_without_a_token_is_unsafe() -> None:
    assert authentication({"10.0.0.1": _answer()}).state == "ok"
    found = authentication({"10.0.0.1": _answer(), "10.0.0.2": _answer(auth="")})
    assert found.state == "unsafe" and "10.0.0.2" in found.value and "RAY_AUTH_MODE=token" in found.fix


@pytest.mark.parametrize(("host", "state"), [("127.0.0.1", "ok"), ("10.0.0.1", "unsafe"), (None, "note")])
def test_an_open_dashboard_is_unsafe(host: str | None, state: str) -> None:
    found = dashboard(host)
    assert found.state == state
    assert state != "unsafe" or "--dashboard-host=127.0.0.1" in found.fix


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_in_front_of_a_cluster_is_refused_at_once(here: Here, address: str) -> None:
    code, out, err = here("doctor", "--address", address)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: address {address!r} is not that of a Ray cluster") and "give HOST:6379" in err


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
    told = json.loads(ended.stdout)
    found = {one["name"]: one for one in told["findings"]}
    assert found["nodes"]["value"] == "2, 2 CPUs, 0 GPUs"
    head, node = (next(one for name, one in found.items() if name.startswith(kind)) for kind in ("head ", "node "))
    assert head["value"].startswith("1 CPUs, ") and node["value"].endswith("no GPU")
    assert found["versions"]["value"].startswith("the same on every node")
    assert found["storage"]["value"] == f"{tmp_path}: seen by every node"
    assert found["authentication"]["value"] == "token, on every node"
    assert found["dashboard"]["value"] == "on loopback only"
    assert told["state"] == "ok"
    assert "can train    tiny_lora (2 workers on cpu)" in told["can_train"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wrong_token_is_one_line(two_nodes: Cluster) -> None:
    words = ["-m", "sdxl_ray", "doctor", "--address", two_nodes.address]
    for environment, says in (
        ({"RAY_AUTH_MODE": "disabled"}, "none is set"),
        ({"RAY_AUTH_TOKEN": "b" * 64}, "another"),
    ):
        ended = two_nodes.run(Path(sys.executable).name, *words, **environment)
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
