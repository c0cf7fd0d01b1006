"""Variants that are another tool's files: imported where the endpoint is built, served as any LoRA or model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdxl_ray.formats.single_file import write_single_file
from sdxl_ray.io.artifact import Artifact
from serve.config import parse
from serve.engine.adapter import require_mixable
from serve.replica.placement import SHARED, plan
from tests.formats.adapters import ATTENTION, TINY, kohya_file, random_adapter


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_foreign_lora_shares_the_bases_replicas(tmp_path: Path) -> None:
    file = kohya_file(tmp_path, random_adapter([ATTENTION]), "pixel art.safetensors")
    placed = plan(parse({"base": "tiny", "variants": {"base": "base", "pixel": str(file)}}))
    assert placed.places["pixel"].kind == "lora"
    assert placed.places["pixel"].group == SHARED
    folder = placed.groups[SHARED].adapters["pixel"]
    require_mixable("pixel", Artifact.open(folder), TINY)


def test_a_foreign_model_has_replicas_of_its_own(tmp_path: Path, embedded: Path) -> None:
    write_single_file(embedded, tmp_path / "other.safetensors", metadata={}, dtype=torch.float16)
    placed = plan(parse({"base": "tiny", "variants": {"other": str(tmp_path / "other.safetensors")}}))
    assert placed.places["other"].kind == "full"
    group = placed.places["other"].group
    assert group is not None
    assert Artifact.open(str(placed.groups[group].artifact)).manifest.base.id == "tiny"


def test_a_file_of_another_model_stops_its_variant_alone(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    good = kohya_file(tmp_path, random_adapter([ATTENTION]), "good.safetensors")
    variants = {"cut": str(tmp_path / "cut.safetensors"), "good": str(good)}
    placed = plan(parse({"base": "tiny", "variants": variants}))
    assert placed.places["cut"].group is None
    assert "cut.safetensors" in str(placed.places["cut"].reason)
    assert placed.places["good"].group == SHARED
