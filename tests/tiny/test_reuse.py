"""One part trained alone: it starts from what is shipped, and nothing else of the tree changes."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from sdxl_ray.tiny import shipped
from sdxl_ray.tiny._build import reuse, stages
from sdxl_ray.tiny._build.designs import Designs
from sdxl_ray.tiny._build.finish import MADE
from sdxl_ray.tiny._build.scenes import Scenery
from sdxl_ray.tiny._build.stages import StageJob
from tests.tiny.drawn_sprites import DrawnSprites


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> StageJob:
    """A work folder in which the shipped weights are laid out for a scorer."""
    return _laid_out(tmp_path_factory.mktemp("work"), "identity")


def _laid_out(work: Path, part: str) -> StageJob:
    made = StageJob(work, "cpu", 0.02, scenes=80)
    reuse.lay_out(made, part)
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the shipped tree."""
    for part in shipped.LISTED:
        shutil.copytree(shipped.ROOT / part, tmp_path / part)
    for file in (shipped.INDEX, MADE):
        shutil.copy(shipped.ROOT / file, tmp_path)
    return tmp_path


def _changed(tree: Path) -> set[str]:
    now = shipped.files(tree)
    assert now.keys() == shipped.files().keys()
    return {name for name, digest in shipped.files().items() if now[name] != digest}


def _log(job: StageJob, name: str) -> None:
    (job.work / f"{name}.jsonl").write_text('{"step": 3, "minutes": 0.5, "samples": 7}\n')


def test_weights_put_back_untouched_are_the_same_bytes(job: StageJob, tree: Path) -> None:
    for scorer, start, end in (
        ("identity", "identity-start.pt", "identity-done.pt"),
        ("vision", "clip-done.pt", "vision-done.pt"),
    ):
        _log(job, scorer)
        shutil.copy(job.work / start, job.work / end)
        reuse.put(job, scorer, tree)
    assert _changed(tree) == set()


def test_a_base_put_back_untouched_is_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> None:
    job = _laid_out(tmp_path_factory.mktemp("base"), "base")
    for stage in ("vae", "unet"):
        _log(job, stage)
        shutil.copy(job.work / f"{stage}-start.pt", job.work / f"{stage}-done.pt")
    reuse.put(job, "base", tree)
    assert _changed(tree) == set()
    assert shipped.revision(tree) == shipped.revision()


def test_another_vision_tower_leaves_the_texts_and_the_base_alone(job: StageJob, tree: Path) -> None:
    _log(job, "vision")
    weights = torch.load(job.work / "clip-done.pt", weights_only=True)
    changed = {name: w + 0.1 if "vision_model" in name and w.is_floating_point() else w for name, w in weights.items()}
    torch.save(changed, job.work / "vision-done.pt")
    reuse.put(job, "vision", tree)
    assert _changed(tree) == {"scorers/clip/model.safetensors"}
    assert shipped.revision(tree) == shipped.revision()
    before, after = (load_file(root / "scorers" / "clip" / "model.safetensors") for root in (shipped.ROOT, tree))
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) == ("vision_model" not in name), name
    stages_made = json.loads((tree / MADE).read_text())["stages"]
    before_made = json.loads((shipped.ROOT / MADE).read_text())["stages"]
    assert stages_made.pop("vision") == {"minutes": 0.5, "samples": 7, "started_from": shipped.index_revision()}
    before_made.pop("vision", None)
    assert stages_made == before_made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("identity", {"scorers/identity/model.safetensors"}),
        ("vision", {"scorers/clip/model.safetensors"}),
        ("base", {"base/vae/diffusion_pytorch_model.safetensors", "base/unet/diffusion_pytorch_model.safetensors"}),
    ],
)
def test_the_stages_of_a_part_run_and_hand_over(
    part: str, changed: set[str], tree: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _laid_out(tmp_path_factory.mktemp("part"), part)
    drawn = Scenery(Designs(cast(Any, DrawnSprites())), seed=1, variants=1)
    monkeypatch.setattr(stages, "scenery", lambda **_: drawn)
    monkeypatch.setattr(stages, "_DECOYS", 20)
    monkeypatch.setattr(stages, "_GENERATED", 50)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        for name, step in reuse.STAGES[part].items():
            assert all((job.work / need).is_file() for need in step.needs), name
            step.run(job)
            assert (job.work / step.leaves).is_file(), name
    finally:
        signal.signal(signal.SIGTERM, handler)
    reuse.put(job, part, tree)
    assert _changed(tree) == changed
