"""Storage: a folder, or a store behind a URL; whole files, tried again a few times, never a silent half."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.storage import Storage, is_url, shown
from tests.bucket import Bucket, bucket


@pytest.fixture(scope="module")
def served() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch, bucket(patch) as running:
        yield running


@pytest.fixture
def store(served: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A store of this test's own, with its scratch in the test's folder."""
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "one"))
    return Storage.of(served.url(tmp_path.name))


def _write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _texts(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_path_and_a_file_url_are_the_storage_itself(tmp_path: Path) -> None:
    for where in (tmp_path / "runs", f"file://{tmp_path}/runs"):
        storage = Storage.of(where)
        assert (storage.root, storage.url) == (tmp_path / "runs", None)
        assert storage.kept_at(storage.root / "dog") == str(tmp_path / "runs" / "dog")
        _write(storage.root / "dog", a="1")
        storage.put_folder(storage.root / "dog")
        storage.get_folder(storage.root / "dog")
        assert _texts(storage.root / "dog") == {"a": "1"}
    assert not is_url("C:/runs") and not is_url("runs/dog")


def test_what_one_machine_sends_another_one_fetches(
    store: Storage, served: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.root / "dog"
    _write(run, a="1", b__c="22", checkpoints__x="not sent", **{".hidden": "unfinished"})
    store.put_folder(run, skip=("checkpoints",))
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "two"))
    other = Storage.of(store.url)
    assert other.root != store.root
    _write(other.root / "dog", old="stale", checkpoints__y="mine")
    other.get_folder(other.root / "dog", skip=("checkpoints",))
    assert _texts(other.root / "dog") == {"a": "1", "b/c": "22", "checkpoints/y": "mine"}
    assert served.names(f"{tmp_path.name}/dog") == [f"{tmp_path.name}/dog/a", f"{tmp_path.name}/dog/b/c"]
    assert store.kept_at(run / "a") == f"s3://bucket/{tmp_path.name}/dog/a"


def test_only_what_changed_is_sent_and_what_went_goes(store: Storage, served: Bucket) -> None:
    run = store.root / "dog"
    _write(run, a="1", b="2")
    store.put_folder(run)
    name = store.kept_at(run / "a").removeprefix("s3://bucket/")
    served.write(name, b"changed there")
    (run / "b").unlink()
    _write(run, c="3")
    store.put_folder(run)
    assert served.read(name) == b"changed there"  # not sent again
    assert sorted(store.names(run)) == ["a", "c"]


def test_what_says_that_all_is_there_is_sent_last(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.root / "dog"
    _write(run, summary__json="", artifact__weights="w", z="z")
    (run / "summary" / "json").rename(run / "summary.json")
    _write(run / "artifact", **{"manifest.json": "m"})
    order: list[str] = []
    put = Storage.put

    def watched(self: Storage, path: Path, under: Path | None = None) -> None:
        order.append(path.relative_to(run).as_posix())
        put(self, path, under)

    monkeypatch.setattr(Storage, "put", watched)
    store.put_folder(run)
    assert set(order[:2]) == {"artifact/weights", "z"}
    assert order[2:] == ["artifact/manifest.json", "summary.json"]


def test_files_that_never_change_are_exchanged_by_name(store: Storage) -> None:
    cache = store.root / "cache"
    _write(cache, mine="1")
    store.put_missing(cache)
    (cache / "mine").unlink()
    store.get_missing(cache)
    assert _texts(cache) == {"mine": "1"}


def test_a_name_that_leaves_its_folder_is_not_fetched(store: Storage, served: Bucket, tmp_path: Path) -> None:
    served.write(f"{tmp_path.name}/dog/../../escaped", b"x")
    served.write(f"{tmp_path.name}/dog/good", b"x")
    assert list(store.names(store.root / "dog")) == ["good"]


#: Names that differ by what a library might strip, decode or normalize.
NAMES = (
    "v1",
    "v1.",
    "v1..",
    "v1 ",
    " v1",
    "a b",
    "a%20b",
    "a+b",
    "a#b",
    "a?b=1",
    "a&b",
    "caf\u00e9",
    "cafe\u0301",
    "~",
    "A",
    "a",
)


@pytest.mark.parametrize("kind", ["s3", "memory", "local"])
def test_every_name_of_a_run_has_its_own_place(
    kind: str, store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "s3":
        store = Storage.of(f"{kind}://{tmp_path}/names")
    for name in NAMES:
        _write(store.root / name, **{f"{name}.txt": name})
        store.put_folder(store.root / name)
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "two"))
    other = Storage.of(str(store.url))
    assert set(other.names(other.root)) == {f"{name}/{name}.txt" for name in NAMES}
    for name in NAMES:
        other.get_folder(other.root / name)
        assert _texts(other.root / name) == {f"{name}.txt": name}
    other.remove(other.root / "v1.")
    assert {"v1/v1.txt", "v1../v1...txt"} <= set(store.names(store.root))
    assert store.names(store.root / "v1.") == {}


@pytest.mark.parametrize("folder", ["v1.", "a b", "a%20b", "a#b", "caf\u00e9"])
def test_the_folder_of_a_url_is_taken_literally(folder: str, served: Bucket, store: Storage, tmp_path: Path) -> None:
    where = Storage.of(f"{served.url(tmp_path.name)}/{folder}")
    _write(where.root / "run", a="1")
    where.put_folder(where.root / "run")
    assert f"{folder}/run/a" in store.names(store.root)
    assert where.kept_at(where.root / "run").endswith(f"/{folder}/run")


def test_a_store_is_found_usable_and_left_as_it_was(store: Storage, served: Bucket, tmp_path: Path) -> None:
    assert Storage.usable(str(store.url)) == store
    assert Storage.usable(store) is store
    assert not [name for name in served.names(tmp_path.name) if not name.endswith("/")]  # S3's mark of a folder
    assert list(store.root.iterdir()) == []


def test_a_bucket_that_is_not_there_is_said_at_once(served: Bucket, store: Storage) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"(?i)no.?such.?bucket|does not exist|not found"):
        Storage.usable("s3://no-such-bucket/runs")
    assert time.monotonic() - started < 3


def test_a_scratch_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"scratch folder '.*file/.*' cannot be written: .*SDXL_RAY_SCRATCH"):
        Storage.usable("memory://runs")


def test_ray_train_gets_the_same_files(store: Storage) -> None:
    files, base = pickle.loads(pickle.dumps(store.filesystem()))
    files.create_dir(f"{base}/ray/one", recursive=True)
    with files.open_output_stream(f"{base}/ray/one/state.json") as stream:
        stream.write(b"{}")
    assert files.get_file_info(f"{base}/ray/one/state.json").size == 2
    assert files.get_file_info(f"{base}/ray/none").type.name == "NotFound"
    with files.open_input_stream(f"{base}/ray/one/state.json") as stream:
        assert stream.read() == b"{}"
    assert store.names(store.root) == {"ray/one/state.json": 2}


def test_a_store_that_is_not_there_is_said_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path))
    gone = Storage.of("s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
    _write(gone.root, a="1")
    started = time.monotonic()
    with pytest.raises(RunError, match=r"a could not be sent to 's3://bucket/runs.*connect"):
        gone.put(gone.root / "a")
    assert time.monotonic() - started < 60
    monkeypatch.setattr("sdxl_ray.io.storage.deadline._TRIES", 1)
    with pytest.raises(UserError, match=r"storage 's3://bucket/runs.* cannot be read.*check the address"):
        gone.require_usable()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "no bucket"),
        ("s3://bucket/x?endpont=1", "no option 'endpont'"),
        ("s3://key:secret@bucket/x", "keys come from the environment"),
        ("nothing://x/y", "nothing"),
        ("file://runs/x", "names a machine, 'runs': write file:///runs/x, or a path"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(url: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Storage.of(url)


def test_what_may_be_secret_in_an_address_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown("s3://key:secret@bucket/runs?token=secret") == "s3://bucket/runs"
    assert shown("abfss://runs@account.dfs.core.windows.net/x") == "abfss://runs@account.dfs.core.windows.net/x"
    for url in ("nothing://key:secret@x/y", "s3://key:secret@bucket/x?endpont=secret"):
        with pytest.raises(UserError) as refused:
            Storage.of(url)
        assert "secret" not in str(refused.value)
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path))
    monkeypatch.setattr("sdxl_ray.io.storage.deadline._TRIES", 1)
    gone = Storage.of("s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http&region=secret")
    _write(gone.root, a="1")
    for work in (lambda: gone.put(gone.root / "a"), lambda: gone.get(gone.root / "b"), lambda: gone.names(gone.root)):
        with pytest.raises(RunError) as failed:
            work()
        assert "secret" not in str(failed.value)
    assert gone.kept_at(gone.root / "a") == "s3://bucket/runs/a"


def test_any_file_system_of_fsspec_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path))
    storage = Storage.of("memory://runs")
    _write(storage.root / "dog", a="1", b__c="2")
    storage.put_folder(storage.root / "dog")
    (storage.root / "dog" / "a").unlink()
    storage.get_folder(storage.root / "dog")
    assert _texts(storage.root / "dog") == {"a": "1", "b/c": "2"}
    storage.remove(storage.root / "dog")
    assert storage.names(storage.root / "dog") == {}
