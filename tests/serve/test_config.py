"""What an endpoint is told: strict sections, shipped files, whole files of Ray Serve, and the command line's part."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import requests
import yaml

from sdxl_ray.errors import UserError
from serve import ray_config
from serve.config import ServeConfig, load, override, parse
from serve.replica.placement import SHARED, Placement, plan
from tests.conftest import Cli, Here


def test_every_configuration_in_the_tree_is_read() -> None:
    files = sorted(file.name for file in resources.files("serve").iterdir() if file.name.endswith(".yaml"))
    read = [name for name in files if isinstance(load(name.removesuffix(".yaml")), ServeConfig)]
    assert "compare.yaml" in read
    assert load("compare") == ServeConfig()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prot": 1}, "did you mean 'port'?"),
        ({"limits.stpes": 1}, "did you mean 'steps'?"),
        ({"limits.n": 11}, "limits.n = 11: input should be less than or equal to 10"),
        ({"variants.dog": {"artefact": "x"}}, "did you mean 'artifact'?"),
        ({"variants.dog": {"artifact": "x", "fused": True}}, "set own_replicas"),
        ({"variants": None}, "variants"),
        ({"variants.a b": "x"}, "pattern"),
        ({"queue.images": 5}, "queue.images = 5 is below limits.n = 10"),
        ({"queue.work": 5}, "is below limits.work"),
        (
            {"ingress.deployment_config.num_replicas": 4},
            "queue.images = 32 is 8 for each of 4 ingresses, below limits.n = 10: give at least 37, or fewer "
            "ingress.deployment_config.num_replicas",
        ),
        (
            {"ingress.deployment_config.num_replicas": 5, "queue.images": 99},
            "queue.work = 1600 is 320 for each of 5 ingresses",
        ),
        ({"limits.min_edge": 64, "limits.max_edge": 32}, "limits.min_edge = 64 is above limits.max_edge = 32"),
        ({"engine.max_cached_adapters": 3}, "engine.max_cached_adapters = 3 is below limits.adapters = 4"),
        ({"engine.dtype": "int8"}, "engine.dtype = 'int8'"),
        ({"port": 70000}, "port = 70000"),
        ({"queue.timeout_s": float("inf")}, "queue.timeout_s"),
        ({"cors_origins": ["app.example.org"]}, "cors_origins.0 = 'app.example.org': write an origin: scheme and host"),
        ({"cors_origins": ["https://a.org/"]}, "browsers send this origin as 'https://a.org'"),
        ({"cors_origins": ["https://A.org:443"]}, "browsers send this origin as 'https://a.org'"),
        ({"cors_origins": ["null"]}, "write an origin"),
        ({"cors_origins": ["file:///a"]}, "write an origin"),
        ({"cors_origins": ["http://a:b"]}, "cors_origins.0 = 'http://a:b'"),
        ({"cors_origins": ["https://*.a.org"]}, "write each origin in full"),
        ({"cors_origins": ["*", "https://a.org"]}, "leave either out"),
        ({"images.keep_seconds": -1}, "images.keep_seconds = -1"),
        ({"images.memory_mb": 1}, "did you mean 'memory_mib'?"),
        ({"public_url": "example.org"}, "public_url = 'example.org': write a URL"),
        ({"public_url": "https://a.org/?b"}, "write a URL without a query"),
    ],
)
def test_a_wrong_setting_is_one_line(changes: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as wrong:
        override(ServeConfig(), changes)
    assert line in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_every_setting_is_in_the_schema(here: Here) -> None:
    code, out, _ = here("serve", "--schema")
    known = json.loads(out)["properties"]
    assert code == 0
    assert known.keys() == ServeConfig.model_fields.keys()
    assert "browser" in known["cors_origins"]["description"] and "links" in known["public_url"]["description"]


def test_one_origin_needs_no_list() -> None:
    assert override(ServeConfig(), {"cors_origins": "https://a.org"}).cors_origins == ("https://a.org",)


def test_the_room_that_is_asked_for_is_the_least_that_does() -> None:
    four = {"ingress.deployment_config.num_replicas": 4}
    override(ServeConfig(), {**four, "queue.images": 37})
    with pytest.raises(UserError, match="give at least 37"):
        override(ServeConfig(), {**four, "queue.images": 36})
    override(ServeConfig(), {**four, "deployment_config.num_replicas": 2})


def test_variants_share_weights_where_they_can(artifacts: dict[str, Path]) -> None:
    variants: dict[str, object] = {
        "base": "base",
        "round": str(artifacts["round"]),
        "alone": {"artifact": str(artifacts["wordy"]), "own_replicas": True},
        "melted": {"artifact": str(artifacts["wordy"]), "own_replicas": True, "fused": True},
        "whole": str(artifacts["whole"]),
        "lost": "/nowhere",
    }
    layout = plan(parse({"variants": variants}))
    assert layout.edge == 64
    assert {name: place.group for name, place in layout.places.items()} == {
        "base": SHARED,
        "round": SHARED,
        "alone": "weights-alone",
        "melted": "weights-melted",
        "whole": "weights-whole",
        "lost": None,
    }
    assert "no such folder" in str(layout.places["lost"].reason)
    assert layout.groups["weights-melted"].adapters.keys() == {"melted"}
    assert layout.groups["weights-whole"].artifact == str(artifacts["whole"])
    assert layout.groups[SHARED].adapters.keys() == {"round", "alone", "melted"}
    assert Placement.of(layout.plain()) == layout
    (artifacts["round"] / "more").touch()
    try:
        assert "is not in its manifest" in str(plan(parse({"variants": variants})).places["round"].reason)
    finally:
        (artifacts["round"] / "more").unlink()


RAY = """
proxy_location: EveryNode
http_options: {host: 127.0.0.1, port: 8000}
applications:
- name: images
  import_path: serve.app:build
  args: {config: compare, limits.n: 4}
  deployments:
  - {name: weights, num_replicas: 2, max_ongoing_requests: 9, ray_actor_options: {num_cpus: 1}}
"""


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("num_replicas", "num_replica", "applications[0].deployments[0].num_replica': did you mean 'num_replicas'?"),
        ("num_cpus", "num_cpu", "ray_actor_options.num_cpu': did you mean 'num_cpus'?"),
        ("http_options", "http_option", "did you mean 'http_options'?"),
        ("limits.n", "limits.m", "application 'images'"),
        ("port: 8000", "port: many", "http_options.port = 'many'"),
        ("import_path", "importpath", "did you mean 'import_path'?"),
    ],
)
def test_a_file_of_ray_serve_is_checked_key_by_key(here: Here, tmp_path: Path, old: str, new: str, line: str) -> None:
    file = tmp_path / "ray.yaml"
    file.write_text(RAY)
    assert ray_config.check(str(file)) == ["images"]
    assert here("serve", str(file), "--check")[:2] == (0, f"{file}: images\n")
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayService", "spec": {"serveConfigV2": RAY.replace(old, new, 1)}}
    for text in (RAY.replace(old, new, 1), yaml.safe_dump(manifest)):
        file.write_text(text)
        code, _, err = here("serve", str(file), "--check")
        assert code == 2
        assert line in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["limits.nn=1"], "did you mean 'n'?"),
        (["--variant", "dog"], "NAME=ARTIFACT"),
        (["--variant", "dog=/nowhere", "--check"], "variant 'dog': artifact '/nowhere': no such folder"),
        (["--host", "0.0.0.0"], "SDXL_RAY_API_KEYS"),
        (["base=nowhere"], "no such folder"),
        (["api_keys.file=/nowhere"], "api_keys.file = '/nowhere'"),
    ],
)
def test_the_command_refuses_in_one_line(here: Here, words: list[str], line: str) -> None:
    code, _, err = here("serve", *words)
    assert code == 2
    assert line in err
    assert err.startswith("error: ")


def test_a_cluster_that_does_not_answer_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    ended = cli("serve")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "error: no Ray cluster at '127.0.0.1:1'" in ended.stderr and "unset RAY_ADDRESS" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """At an address of its own, where it is awaited too, and with keys."""
    command = [sys.executable, "-m", "sdxl_ray", "serve", "--host", "127.0.0.2", "--port", "0"]
    command += ["--variant", "lost=/nowhere"]
    key = "0123456789abcdef"
    environment = {**os.environ, "SDXL_RAY_API_KEYS": key}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        try:
            lines = [child.stdout.readline() for _ in range(3)]  # type: ignore[union-attr]
            assert lines[0].split() == ["base", "ready", "base"]
            assert lines[1].startswith("lost")
            assert "no such folder" in lines[1]
            address = lines[2].split()[1]
            assert address.startswith("http://127.0.0.2:")
            body = {"prompt": "a dog", "num_inference_steps": 1}
            for headers, status in (({}, 401), ({"Authorization": f"Bearer {key}"}, 200)):
                answer = requests.post(f"{address}v1/images/generations", json=body, headers=headers, timeout=60)
                assert answer.status_code == status
        finally:
            child.send_signal(signal.SIGINT)
            assert child.wait(30) == 130
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{address}health", timeout=5)
