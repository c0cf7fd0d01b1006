"""What `--storage` may say: paths with `~`, `file:` URLs, stores; near misses are refused with the fix."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from sdxl_ray.errors import UserError
from sdxl_ray.io.storage import Storage, is_url, shown
from sdxl_ray.io.storage.address import redacted, resolved

USER = pwd.getpwuid(os.getuid())


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "{home}"),
        ("~/my runs", "{home}/my runs"),
        (f"~{USER.pw_name}/runs", f"{USER.pw_dir}/runs"),
        ("./~", "{cwd}/~"),
        ("a/~/b", "{cwd}/a/~/b"),
        ("runs:old", "{cwd}/runs:old"),
        ("./s3:/bucket", "{cwd}/s3:/bucket"),
        ("/data/s3://x", "/data/s3:/x"),
        ("a%20b", "{cwd}/a%20b"),
        ("file:///my%20runs", "/my runs"),
        ("file:///my runs", "/my runs"),
        ("file:/my%20runs", "/my runs"),
        ("FILE:///runs", "/runs"),
        ("file://localhost/runs", "/runs"),
        ("file:///caf%C3%A9%3F%23", "/café?#"),
    ],
)
def test_a_path_is_the_folder_that_its_user_means(
    text: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    storage = Storage.of(text)
    assert (str(storage.root), storage.url) == (path.format(home=tmp_path / "home", cwd=tmp_path), None)
    assert Storage.of(storage.root).root == storage.root  # as workers get it


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("", "give a path"),
        ("a\0b", "give a path"),
        ("file:///a%00b", "write file:///path/to/runs"),
        ("~nobody-of-that-name/runs", r"write \./~nobody-of-that-name/runs"),
        ("file:runs", "write file:///path/to/runs"),
        ("file:", "write file:///path/to/runs"),
        ("file://", "write file:///path/to/runs"),
        ("file://runs/x", "write file:///runs/x"),
        ("file://~/runs", "write ~/runs$"),
        ("file:///~/runs", "write ~/runs$"),
        ("file:///runs?x", "write %3F"),
        ("file:///runs#x", "write %23"),
        ("s3:/bucket/runs", "write s3://bucket/runs"),
        ("S3:/bucket", "write s3://bucket"),
        ("s3:bucket", "write s3://bucket"),
        ("gs:", "write gs://bucket"),
        ("host:/runs", "write host://runs"),
        ("s3://", "write s3://bucket/runs"),
        ("gs:///runs", "write gs://bucket/runs"),
        ("abfss://", "write abfss://bucket/runs"),
        ("abfss://account.blob.core.windows.net/", "write abfss://CONTAINER@ACCOUNT"),
        ("s3://[bucket/runs", "is no URL"),
        ("C:\\runs", "like ~/runs"),
        ("c:/runs", "like ~/runs"),
        ("s4://bucket", "did you mean 's3'"),
        ("gs://bucket/x?endpoint=1", "choose from endpoint_override"),
        ("gs://key@bucket/x", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("abfss://c@account.dfs.core.windows.net/x?nothing=1", "'nothing'"),
        ("gdrive://x", "(?i)install|no module"),
    ],
)
def test_what_names_no_storage_is_refused_with_the_fix(text: str, fix: str) -> None:
    with pytest.raises(UserError, match=fix) as refused:
        Storage.of(text)
    assert "\n" not in str(refused.value)


def test_the_case_of_a_scheme_does_not_matter() -> None:
    assert resolved("S3://Bucket/Runs") == "s3://Bucket/Runs"
    assert resolved("ABFSS://C@a.dfs.core.windows.net") == "abfss://C@a.dfs.core.windows.net"
    assert is_url("GS://bucket")


def test_what_may_be_secret_is_in_no_message() -> None:
    url = "webhdfs://user:secret@host:1/x?token=hidden&user=me"
    assert (
        redacted(f"{url} failed: /x?token=hidden as user:secret", url) == "webhdfs://host:1/x failed: /x?token=… as …:…"
    )
    assert shown("simplecache::s3://key:secret@bucket/x") == "simplecache::s3://bucket/x"
    assert shown("memory:///x?token=secret") == "memory:///x"
    with pytest.raises(UserError) as refused:
        Storage.of("s3://key:secret@[bucket/x?token=secret")
    assert "secret" not in str(refused.value)


def _read_only(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o555)
    return folder


def _a_file(path: Path) -> Path:
    path.touch()
    return path


def _a_dead_link(path: Path) -> Path:
    path.symlink_to(path.with_name("gone"))
    return path


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (lambda tmp: _a_file(tmp / "file"), "is a file, not a folder"),
        (lambda tmp: _a_file(tmp / "file") / "a" / "b", "cannot be made: '.*file' is a file"),
        (lambda tmp: _a_dead_link(tmp / "link"), "No such file"),
        (lambda tmp: tmp / ("x" * 300) / "runs", "name too long"),
        pytest.param(
            lambda tmp: _read_only(tmp / "mine") / "runs",
            "no rights in '.*mine'",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
        ),
    ],
)
def test_a_folder_that_cannot_hold_runs_is_refused_before_anything_starts(
    where: object, says: str, tmp_path: Path
) -> None:
    path = where(tmp_path)  # type: ignore[operator]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=says) as refused:
        Storage.of(path).require_usable()
    assert "give another --storage" in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_not_there_yet_is_fine_and_is_not_made(tmp_path: Path) -> None:
    Storage.of(tmp_path / "a" / "b").require_usable()
    assert not list(tmp_path.iterdir())
