"""Which bases a plan knows, and what is no SDXL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.errors import UserError
from sdxl_ray.plan import Plan, architecture
from tests.plan.known import adapters, recipe


def folder(tmp_path: Path, **changes: dict[str, Any]) -> Path:
    for part, settings in architecture.sdxl_configs().items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({**settings, **changes.get(part, {})}))
    return tmp_path


def test_a_folder_of_sdxl_is_recognised(tmp_path: Path) -> None:
    # As the hub's own configs spell it: defaults written out, versions, names.
    spelled = {"unet": {"_diffusers_version": "0.19", "class_embed_type": None, "conv_in_kernel": 3}}
    plan = Plan.of(recipe(base={"id": str(folder(tmp_path, **spelled))}), "h100")
    assert plan.trainable == adapters(16)
    assert not any("shapes of SDXL" in note for note in plan.assumptions)


def test_a_hub_id_that_is_not_here_is_assumed_to_be_sdxl() -> None:
    plan = Plan.of(recipe(base={"id": "somebody/some-xl", "revision": "a" * 40}), "h100")
    assert any("somebody/some-xl has the shapes of SDXL base 1.0" in note for note in plan.assumptions)


def test_folders_that_are_no_sdxl(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no unet/config.json"):
        Plan.of(recipe(base={"id": str(tmp_path)}), "h100")
    wrong = folder(tmp_path, unet={"addition_embed_type": None})
    with pytest.raises(UserError, match="not SDXL"):
        Plan.of(recipe(base={"id": str(wrong)}), "h100")
    (wrong / "vae" / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        Plan.of(recipe(base={"id": str(wrong)}), "h100")
