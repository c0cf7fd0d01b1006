"""What keeps an endpoint from harm: keys, admission, and when to come back."""

from __future__ import annotations

import hmac
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sdxl_ray.errors import UserError
from serve.app import require_guarded
from serve.config import ApiKeys, ServeConfig, override
from serve.http.admission import AdmissionLedger, share
from serve.http.auth import Keys, read_keys
from serve.http.errors import ApiError, busy
from serve.http.port import free_port, require_free
from serve.local import _elsewhere, _reached

KEY = "0123456789abcdef"


def test_keys_come_from_the_environment_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}-file  # of the page\n\n")
    monkeypatch.setenv("SDXL_RAY_API_KEYS", f"{KEY}-one, {KEY}-two")
    keys = read_keys(ApiKeys(file=str(file)))
    assert len(keys) == 3
    for given in ("one", "two", "file"):
        keys.require(f"Bearer {KEY}-{given}")
        keys.require(f"bearer  {KEY}-{given}")
    for wrong in (
        None,
        "",
        "Bearer",
        f"Bearer {KEY}",
        f"Basic {KEY}-one",
        f"Bearer {KEY}-one, {KEY}-two",
        "Bearer \xff",
    ):
        with pytest.raises(ApiError) as refused:
            keys.require(wrong)
        assert (refused.value.status, refused.value.headers) == (401, {"WWW-Authenticate": "Bearer"})
        assert KEY not in refused.value.message
    assert KEY not in repr(vars(keys))


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def seen(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr("serve.http.auth.hmac.compare_digest", seen)
    Keys([KEY, KEY * 2, KEY * 3]).require(f"Bearer {KEY}")
    assert compared == [(32, 32)] * 3


def test_keys_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_RAY_API_KEYS", "short")
    with pytest.raises(UserError, match="shorter than 16"):
        read_keys(ApiKeys())
    monkeypatch.delenv("SDXL_RAY_API_KEYS")
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(UserError, match="holds no key"):
        read_keys(ApiKeys(file=str(tmp_path / "empty")))
    Keys([]).require(None)


def test_nobody_is_let_in_from_outside_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = override(ServeConfig(), {"host": "0.0.0.0"})
    with pytest.raises(UserError, match="allow_open"):
        require_guarded(outside)
    require_guarded(override(outside, {"allow_open": True}))
    monkeypatch.setenv("SDXL_RAY_API_KEYS", KEY)
    require_guarded(outside)


def test_every_web_site_is_let_in_only_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    every = override(ServeConfig(), {"cors_origins": ["*"]})
    with pytest.raises(UserError, match=r"cors_origins = \['\*'\] lets every web site .* allow_open=true"):
        require_guarded(every)
    require_guarded(override(every, {"allow_open": True}))
    require_guarded(override(ServeConfig(), {"cors_origins": ["https://app.example.org"]}))
    monkeypatch.setenv("SDXL_RAY_API_KEYS", KEY)
    require_guarded(every)


def test_a_port_that_is_taken_ends_the_command_before_ray_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = "import sys; sys.modules['ray'] = None; from sdxl_ray.__main__ import main; main()"  # no import of Ray
        for words in (["--port", str(port)], [f"port={port}"]):
            command = [sys.executable, "-c", code, "serve", *words]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.startswith(f"error: port = {port} on 127.0.0.1: Address already in use; end the program")
            assert "--port" in done.stderr and done.stderr.count("\n") == 1


def test_a_ledger_admits_images_and_work_up_to_its_bounds() -> None:
    ledger = AdmissionLedger(4, 100)
    ledger.admit(3, 30)
    with pytest.raises(ApiError) as full:
        ledger.admit(2, 2)
    assert (full.value.status, full.value.code, full.value.headers) == (429, "queue_full", {"Retry-After": "1"})
    with pytest.raises(ApiError):
        ledger.admit(1, 71)
    ledger.admit(1, 70)
    for _ in range(3):
        ledger.release(1, 10, drawn=True)
    ledger.release(1, 70, drawn=False)
    assert (ledger.images, ledger.work) == (0, 0)
    ledger.admit(1, 1000)  # what one request may ask is checked before: alone it never starves
    with pytest.raises(ApiError):
        ledger.admit(1, 1)


def test_when_to_come_back_follows_the_speed() -> None:
    now = 0.0
    ledger = AdmissionLedger(100, 1e9, clock=lambda: now)
    ledger.admit(20, 200)
    assert ledger.wait_s == 1
    for _ in range(10):
        now += 2.0  # ten steps in two seconds
        ledger.release(1, 10, drawn=True)
    assert ledger.wait_s == pytest.approx(100 * 0.2 / 2)
    ledger.admit(80, 1e6)
    assert ledger.wait_s == 60


def test_ingresses_share_and_waits_are_whole_seconds() -> None:
    assert share(9, 2) == 5
    assert busy("queue_full", "", 1.2).headers == {"Retry-After": "2"}
    assert busy("restarting", "", 0.0).headers == {"Retry-After": "1"}
    assert busy("deadline_passed", "", 1).status == 503


def test_the_proxy_that_runs_decides_who_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Serve runs already, its address counts, not that of the configuration."""
    with pytest.raises(UserError, match=r"Ray Serve runs already on 0\.0\.0\.0, which is reachable .* allow_open=true"):
        require_guarded(ServeConfig(), "0.0.0.0")
    require_guarded(override(ServeConfig(), {"host": "0.0.0.0"}), "127.0.0.1")
    assert _elsewhere(ServeConfig(), "127.0.0.1", 8000) is None
    assert _elsewhere(override(ServeConfig(), {"port": 0}), "127.0.0.1", 9000) is None
    note = _elsewhere(ServeConfig(), "10.0.0.1", 9000)
    assert note == ("Ray Serve runs already and listens on 10.0.0.1:9000: host = 127.0.0.1 and port = 8000 is not used")
    monkeypatch.setenv("SDXL_RAY_API_KEYS", KEY)
    require_guarded(ServeConfig(), "0.0.0.0")


OPEN = """
import ray
from ray import serve
from sdxl_ray.errors import UserError
from serve.config import ServeConfig
from serve.local import running
from serve.http.port import free_port
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
serve.start(http_options={"host": "0.0.0.0", "port": free_port("0.0.0.0")}, proxy_location="HeadOnly")
try:
    with running(ServeConfig()):
        print("served")
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_an_endpoint_is_not_deployed_where_serve_is_open_already(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert "Ray Serve runs already on 0.0.0.0, which is reachable from other machines" in done.stdout, done.stderr
    assert done.returncode == 0


def test_an_address_is_bound_in_its_own_family_and_reached_from_here() -> None:
    assert [_reached(host) for host in ("127.0.0.1", "0.0.0.0", "10.0.0.1", "::1", "::")] == [
        "127.0.0.1", "127.0.0.1", "10.0.0.1", "[::1]", "[::1]",
    ]  # fmt: skip
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port = {port} on 127.0.0.1: .*; end the program that holds it, or"):
            require_free("127.0.0.1", port)
    with pytest.raises(UserError, match="must be an address of this machine"):
        require_free("192.0.2.1", 0)  # of documentation (RFC 5737), so of nobody
    if Path("/proc/net/if_inet6").is_file() and Path("/proc/net/if_inet6").read_text():
        assert free_port("::1") > 0
