"""An artifact opens only when its folder holds exactly what its manifest says."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import Artifact, write_manifest
from sdxl_ray.io.atomic import publish


def _make(folder: Path, weights: bytes = b"weights") -> Artifact:
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(weights)
    (folder / "model_index.json").write_text("{}")
    return write_manifest(
        folder,
        kind="full",
        recipe={"seed": 0, "optim": {"lr": 1e-4}},
        recipe_identity="a" * 64,
        base_id="tiny",
        base_revision="b" * 64,
        step=7,
        created="2026-11-01T00:00:00+00:00",
    )


def _edit(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    plain = json.loads((folder / "manifest.json").read_text())
    change(plain)
    (folder / "manifest.json").write_text(json.dumps(plain))


def _refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Artifact.open(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_what_opens(tmp_path: Path) -> None:
    written = _make(tmp_path / "a")
    opened = Artifact.open(tmp_path / "a")
    assert opened == written
    assert opened.hash == written.hash
    assert opened.manifest.files == {
        "model_index.json": hashlib.sha256(b"{}").hexdigest(),
        "unet/model.safetensors": hashlib.sha256(b"weights").hexdigest(),
    }
    assert opened.manifest.step == 7
    assert opened.manifest.base.id == "tiny"
    assert opened.manifest.versions["torch"].startswith("2.")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["manifest.json", "model_index.json", "unet"]


def test_the_hash_follows_the_content_and_not_the_place_or_the_spelling(tmp_path: Path) -> None:
    first = _make(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    _edit(tmp_path / "b", lambda plain: None)  # other white space
    assert Artifact.open(tmp_path / "b").hash == first.hash
    assert _make(tmp_path / "c", b"other").hash != first.hash


def test_one_flipped_bit_is_named_with_the_hash_expected(tmp_path: Path) -> None:
    _make(tmp_path / "a")
    (tmp_path / "a" / "unet" / "model.safetensors").write_bytes(b"weighus")
    said = _refused(tmp_path / "a")
    assert "unet/model.safetensors was altered" in said
    assert f"expected {hashlib.sha256(b'weights').hexdigest()}" in said


def test_missing_and_extra_files_are_named(tmp_path: Path) -> None:
    _make(tmp_path / "a")
    (tmp_path / "a" / "more.bin").touch()
    assert "more.bin is not in its manifest" in _refused(tmp_path / "a")
    (tmp_path / "a" / "more.bin").unlink()
    (tmp_path / "a" / "unet" / "model.safetensors").unlink()
    expected = hashlib.sha256(b"weights").hexdigest()
    assert f"unet/model.safetensors is missing (sha256 {expected})" in _refused(tmp_path / "a")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "unet/../../secret", "a\\b", ".", "unet//x", ""])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    _make(tmp_path / "a")
    (tmp_path / "secret").write_bytes(b"")
    empty = hashlib.sha256(b"").hexdigest()
    _edit(tmp_path / "a", lambda plain: plain["files"].update({name: empty}))
    assert f"{name!r} is not a plain name inside the folder" in _refused(tmp_path / "a")


def test_links_are_refused_when_reading_and_when_writing(tmp_path: Path) -> None:
    _make(tmp_path / "a")
    outside = tmp_path / "outside"
    outside.write_bytes(b"weights")
    weights = tmp_path / "a" / "unet" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(outside)
    assert "unet/model.safetensors is a link" in _refused(tmp_path / "a")
    with pytest.raises(UserError, match="is a link"):
        write_manifest(tmp_path / "a", kind="lora", recipe={}, recipe_identity="", base_id="", base_revision="", step=0)
    _make(tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "unet")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "b" / "unet").symlink_to(tmp_path / "elsewhere")
    assert "unet is a link" in _refused(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plain: plain.update(format_version=2), "format version 2, this program reads 1: update sdxl-ray"),
        (lambda plain: plain.pop("format_version"), "format version None"),
        (lambda plain: plain.update(kind="merged"), "damaged at kind"),
        (lambda plain: plain.update(surprise=1), "damaged at surprise"),
        (lambda plain: plain["files"].update(x="12"), "damaged at files.x"),
        (lambda plain: plain.update(step=-1), "damaged at step"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    tmp_path: Path, change: Callable[[dict[str, object]], None], said: str
) -> None:
    _make(tmp_path / "a")
    _edit(tmp_path / "a", change)
    assert said in _refused(tmp_path / "a")


def test_what_is_no_artifact_is_refused_with_a_hint(tmp_path: Path) -> None:
    assert "no such folder" in _refused(tmp_path / "none")
    _make(tmp_path / "run" / "artifact")
    assert f"did you mean {str(tmp_path / 'run' / 'artifact')!r}?" in _refused(tmp_path / "run")
    for broken in ("", "{", "[" * 100_000, "[]", "null"):
        (tmp_path / "run" / "manifest.json").write_text(broken)
        assert "manifest.json is not JSON" in (said := _refused(tmp_path / "run")) or "format version" in said


def test_a_folder_without_its_manifest_is_never_taken_for_whole(tmp_path: Path, monkeypatch) -> None:
    _make(tmp_path / "a")

    def full_disk(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        shutil.rmtree(tmp_path / "a" / "unet")
        _make(tmp_path / "a")
    assert "holds no manifest.json" in _refused(tmp_path / "a")


def test_publishing_replaces_what_was_there(tmp_path: Path) -> None:
    _make(tmp_path / "final", b"old")
    new = _make(tmp_path / "draft", b"new")
    (tmp_path / ".final.before").mkdir()  # a process died here once
    assert publish(tmp_path / "draft", tmp_path / "final") == tmp_path / "final"
    assert Artifact.open(tmp_path / "final").hash == new.hash
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_it_needs_no_framework() -> None:
    code = "import sys, sdxl_ray.io.artifact; assert not {'torch', 'diffusers', 'ray', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
