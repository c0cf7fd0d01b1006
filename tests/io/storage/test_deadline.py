"""Stores that do not answer, refuse or raise: one time limit and one line for every kind, and the process ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.storage import Storage, mirror
from sdxl_ray.io.storage.deadline import patiently, together, waits_reported
from tests.io.storage.silent import KINDS, Faulty, dead_port, faulty, silent

DEADLINE = "sdxl_ray.io.storage.deadline"


@pytest.fixture(autouse=True)
def brief(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds instead of minutes, and a scratch of the test's own."""
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(f"{DEADLINE}._PATIENCE_S", 1.0)
    monkeypatch.setattr(f"{DEADLINE}._BLOCK_S", 1.0)
    monkeypatch.setattr(f"{DEADLINE}._SILENT_S", 0.2)
    monkeypatch.setattr(f"{DEADLINE}._EVERY_S", 0.0)
    monkeypatch.setattr("sdxl_ray.io.storage.filesystems._GOOGLE_RETRY_S", 1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Storage]:
    with faulty(tmp_path / "store") as url:
        yield Storage.of(url)


def _file(storage: Storage, size: int, name: str = "run/file") -> Path:
    path = storage.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def _refused(url: str) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        Storage.of(url).require_usable()
    assert time.monotonic() - began < 10
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_never_answers_is_given_up_and_said_while_waiting(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with silent() as port, waits_reported(said.append):
        if "environment" in kind:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        text = _refused(KINDS[kind].format(port=port))
    scheme = KINDS[kind].partition(":")[0]
    assert text.startswith(f"storage '{scheme}://") and "no answer in 1 s" in text
    assert said and said[0].startswith(f"waiting for storage '{scheme}://") and said[0].endswith("s of 1)")


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_where_nobody_listens_is_one_line_with_the_cause(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{DEADLINE}._PATIENCE_S", 10.0)
    monkeypatch.setattr(f"{DEADLINE}._TRIES", 1)
    port = dead_port()
    if "environment" in kind:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{port}")
    text = _refused(KINDS[kind].format(port=port))
    assert any(cause in text.lower() for cause in ("connect to server", "refused", "failed to connect")), text


def test_credentials_that_are_not_there_are_final_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with silent() as port:
        text = _refused(f"abfss://runs@account.dfs.core.windows.net/x?blob_storage_authority=127.0.0.1:{port}")
    assert "Failed to get token" in text and "AZURE_CLIENT_ID" in text


@pytest.mark.parametrize(
    ("url", "package"), [("az://container/x", "adlfs"), ("sftp://host/x", "paramiko"), ("smb://host/x", "smbprotocol")]
)
def test_a_package_that_is_missing_is_named(url: str, package: str) -> None:
    assert package in _refused(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/runs", "data://x"])
def test_a_store_that_cannot_be_written_is_refused_before_anything_starts(url: str) -> None:
    assert "cannot be" in _refused(url.format(port=dead_port()))


class StrangeError(Exception):
    """What a library may raise: of no known type, with a status as HTTP clients have it."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (StrangeError("\n\n  no bucket of that name\n  at line 12", 404), "no bucket of that name"),
        (StrangeError("", 403), "StrangeError"),
        (OSError("AWS Error ACCESS_DENIED during PutObject operation"), "ACCESS_DENIED"),
        (
            OSError("google::cloud::Status(PERMISSION_DENIED: you may not error_info={reason=x})"),
            "DENIED: you may not$",
        ),
        (KeyError("region"), "'region'"),
        (NotImplementedError(), "a store of this kind cannot do that"),
    ],
)
def test_what_no_second_try_mends_is_not_tried_again(store: Storage, fault: Exception, line: str) -> None:
    Faulty.faults[:] = [fault]
    with pytest.raises(RunError, match=rf"^storage '.*' cannot be read: .*{line}") as failed:
        store.names(store.root)
    assert Faulty.calls == 1 and "\n" not in str(failed.value)


@pytest.mark.parametrize(
    "fault", [OSError("reset"), StrangeError("busy", 503), StrangeError("slow down", 429), StrangeError("odd")]
)
def test_what_may_heal_is_tried_again(store: Storage, fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    Faulty.faults[:] = [fault]
    assert store.names(store.root) == {}
    monkeypatch.setattr(f"{DEADLINE}._TRIES", 2)
    Faulty.faults[:] = [fault] * 2
    with pytest.raises(RunError, match=str(fault)):
        store.names(store.root)


def test_a_file_of_ray_train_is_sent_whole_and_again(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train ends a run whose controller fails to write its state once."""
    files, root = store.filesystem()
    files.create_dir(root)
    opened, write = Faulty.open, list[str]()

    def flaky(self: Faulty, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        write.append(mode)
        if len(write) == 1:
            raise OSError("reset")
        return opened(self, path, mode, **kwargs)

    monkeypatch.setattr(Faulty, "open", flaky)
    with files.open_output_stream(f"{root}/state.json") as sink:
        sink.write(b"a" * 10)
        assert write == []  # nothing of it is there before it is whole
        sink.write(b"b")
    assert write == ["wb", "wb"]
    with files.open_input_stream(f"{root}/state.json") as source:
        assert source.read() == b"a" * 10 + b"b"
    monkeypatch.setattr(f"{DEADLINE}._TRIES", 1)
    write.clear()
    with pytest.raises(OSError, match="reset"), files.open_output_stream(f"{root}/state.json") as sink:
        sink.write(b"x")


def test_a_dead_store_is_not_an_empty_one(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's own listing takes every error for "not found": a run would begin again."""
    monkeypatch.setattr(f"{DEADLINE}._TRIES", 1)
    Faulty.faults[:] = [OSError("connection lost")]
    with pytest.raises(RunError, match="connection lost"):
        store.names(store.root / "run")
    with pytest.raises(RunError, match="connection lost"):
        Faulty.faults[:] = [OSError("connection lost")]
        store.get_folder(store.root / "run")


def test_an_upload_that_moves_is_not_cut_and_one_that_stalls_is(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(f"{DEADLINE}._BLOCK_S", 0.5)
    Faulty.seconds_a_block = 0.1
    path = _file(store, 10_000)  # a second in all
    store.put(path)
    assert store.names(store.root) == {"run/file": 10_000}
    Faulty.stalled.set()
    began = time.monotonic()
    with pytest.raises(RunError, match=r"file could not be sent to 'faulty://.*': no answer in 0.5 s"):
        store.put(path)
    assert time.monotonic() - began < 3


def test_a_stalled_folder_ends_with_its_first_file(store: Storage) -> None:
    """Of 20 files the 4 that are under way wait, and no other one begins to wait after them."""
    for number in range(20):
        _file(store, 10, f"run/{number}")
    Faulty.stalled.set()
    began = time.monotonic()
    with pytest.raises(RunError, match="could not be sent"):
        store.put_folder(store.root / "run")
    assert time.monotonic() - began < 1.9


def test_ctrl_c_does_not_wait_for_a_store() -> None:
    ready = threading.Event()

    def hang(name: str) -> None:
        if name == "interrupted":
            raise KeyboardInterrupt
        ready.set()
        patiently(lambda _: time.sleep(30), "x", "memory://x")

    began = time.monotonic()
    with pytest.raises((KeyboardInterrupt, RunError)):
        together(hang, ["hangs", "interrupted"])
    assert time.monotonic() - began < 5


def test_the_process_of_a_store_that_hangs_ends(tmp_path: Path) -> None:
    """With a call that is still blocked in C++; the line about the wait and the cause are on stderr."""
    program = (
        "import sys; from sdxl_ray.io.storage import Storage, deadline; from sdxl_ray.errors import UserError\n"
        "deadline._PATIENCE_S, deadline._SILENT_S = 2.0, 0.5\n"
        "try: Storage.of(sys.argv[1]).require_usable()\n"
        "except UserError as error: sys.exit(str(error))"
    )
    with silent() as port:
        running = {
            kind: subprocess.Popen(
                [sys.executable, "-c", program, KINDS[kind].format(port=port)], stderr=subprocess.PIPE, text=True
            )
            for kind in ("gs", "abfss")
        }
        for process in running.values():
            _, err = process.communicate(timeout=60)
            assert process.returncode == 1
            waiting, *_, last = err.splitlines()
            assert waiting.startswith("waiting for storage ") and "no answer in 2 s" in last
