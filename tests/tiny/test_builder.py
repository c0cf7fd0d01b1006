"""The builder's stages for a second each, on stand-in drawings: they run, hand over, go on where they were cut."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from sdxl_ray.errors import RunError, UserError
from sdxl_ray.tiny._build import ranking, sprites, stage_clip, stage_identity, stage_vae, stages
from sdxl_ray.tiny._build.catalog import SETS
from sdxl_ray.tiny._build.designs import Designs
from sdxl_ray.tiny._build.layout import configs
from sdxl_ray.tiny._build.ranking import LEVELS
from sdxl_ray.tiny._build.scenes import Scenery
from sdxl_ray.tiny._build.session import Session
from sdxl_ray.tiny._build.stages import STEPS, StageJob
from tests.tiny.drawn_sprites import DrawnSprites


class Line(nn.Module):
    """y = w x: enough to train."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


def _train(session: Session, stop_after: int | None = None) -> None:
    for step in session:
        session.update((session.model.w - 1).square().sum(), 1)
        if stop_after is not None and step >= stop_after:
            signal.raise_signal(signal.SIGTERM)


def test_a_stage_that_is_told_to_stop_keeps_its_state(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        first = Session(tmp_path, "line", 1, Line(), 0.01, average=0.9)
        with pytest.raises(SystemExit) as stopped:
            _train(first, stop_after=20)
        second = Session(tmp_path, "line", 0.02, Line(), 0.01, average=0.9)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert stopped.value.code == 143
    assert second.step == first.step == 21
    assert torch.equal(second.model.w, first.model.w)
    assert torch.equal(second.averages["w"], first.averages["w"])
    assert 0 < second.fraction < 1
    _train(second)
    assert second.fraction == 1
    assert second.step > 100
    trained = float(second.model.w.detach())
    second.finish()
    assert trained > 0.5
    assert float(second.model.w.detach()) == float(second.averages["w"])
    assert len((tmp_path / "line.jsonl").read_text().splitlines()) >= 1


def test_folding_the_latents_scale_changes_no_image() -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL.from_config(configs()["vae"])
    pixels = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = model.encode(pixels).latent_dist
        shown = model.decode(before.mean).sample
        stage_vae.normalise(model, before.mean)
        after = model.encode(pixels).latent_dist
        again = model.decode(after.mean).sample
    scale = after.mean / (before.mean - before.mean.mean((0, 2, 3), keepdim=True))
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(after.std / before.std, scale, rtol=1e-2)
    assert torch.allclose(shown, again, atol=1e-4)


def test_a_caption_matches_every_scene_that_it_is_true_of() -> None:
    # class, second class, place, look; the last scene is a decoy.
    truth = torch.tensor([[1, 24, 5, 0], [1, 24, 6, 0], [2, 24, 5, 3], [1, 2, 5, -1], [24, 24, -1, -1]])
    said = torch.tensor([[1, 24, 5, 0], [1, 24, -1, -1], [2, 24, 5, 0], [2, 1, 5, -1]])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert stage_clip._true_of(said, truth).int().tolist() == expected


def test_the_contrast_of_matching_pairs_is_low() -> None:
    vectors = torch.eye(4)
    matches = torch.eye(4, dtype=torch.bool)
    scale = torch.tensor(3.0)
    apart = torch.zeros_like(vectors[:2])
    assert stage_clip.contrastive(vectors, vectors, apart, scale, matches) < 0.01
    assert stage_clip.contrastive(vectors, vectors.roll(1, 0), apart, scale, matches) > 10
    # Noise that looks like a scene costs both the text and the image of that scene.
    assert stage_clip.contrastive(vectors, vectors, vectors[:2], scale, matches) > 0.1


def _pairs() -> ranking.Pairs:
    # Two views of a design, its sibling, a stranger, a decoy of the first, an image of a bad generator.
    owner = torch.tensor([0, 0, 1, 2, 3, 4])
    return ranking.Pairs.of(owner, torch.tensor([-1, -1, -1, -1, 0, -1]), torch.tensor([5, 5, 5, 6, 24, -100]), 24)


def test_pairs_are_sorted_by_what_they_should_be() -> None:
    found = {kind: mask.nonzero().tolist() for kind, mask in _pairs().masks.items()}
    assert found == {
        "same": [[0, 1], [1, 0]],
        "sibling": [[0, 2], [1, 2], [2, 0], [2, 1]],
        "stranger": [[0, 3], [1, 3], [2, 3], [3, 0], [3, 1], [3, 2]],
        "decoy": [[4, 0], [4, 1]],
        "false": [[4, 2], [4, 3]],
        "generated": [[5, 0], [5, 1], [5, 2], [5, 3]],
    }


def test_cosines_where_they_should_be_cost_nothing_and_others_their_distance() -> None:
    pairs = _pairs()
    right = sum(
        mask * (low + high) / 2 for mask, (low, high, _) in zip(pairs.masks.values(), LEVELS.values(), strict=True)
    )
    assert all(float(cost) == 0 for cost in pairs.levels(right).values())
    alike = torch.ones(6, 6)
    costs = {kind: float(cost) for kind, cost in pairs.levels(alike).items()}
    assert costs == pytest.approx({kind: weight * (1 - high) for kind, (_, high, weight) in LEVELS.items()})


def test_siblings_are_no_negatives_of_the_contrast() -> None:
    pairs = _pairs()
    apart = torch.eye(6)
    apart[:2, :2] = 1
    near_sibling, near_decoy = apart.clone(), apart.clone()
    near_sibling[:2, 2] = near_sibling[2, :2] = 1
    near_decoy[:2, 4] = near_decoy[4, :2] = 1
    assert pairs.contrast(apart) < 0.01
    assert torch.equal(pairs.contrast(near_sibling), pairs.contrast(apart))
    assert pairs.contrast(near_decoy) > 0.5


def test_a_batch_has_every_decoy_of_every_design_and_a_drawing_as_drawn() -> None:
    scenery = Scenery(Designs(cast(Any, DrawnSprites())), seed=1, variants=1)
    made = stage_identity.batch(scenery, np.random.default_rng(4), None)
    real = made.kind < 24
    owners = set(made.identity[real].tolist())
    assert Counter(made.imitates[~real].tolist()) == dict.fromkeys(owners, 4)
    assert set(Counter(made.identity[real].tolist()).values()) == {3}


@pytest.mark.slow
def test_every_stage_runs_and_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Scenery(Designs(cast(Any, DrawnSprites())), seed=1, variants=1)
    monkeypatch.setattr(stages, "scenery", lambda **_: drawn)
    monkeypatch.setattr(stages, "_DECOYS", 20)
    monkeypatch.setattr(stages, "_GENERATED", 50)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        for name, step in STEPS.items():
            assert all((tmp_path / need).is_file() for need in step.needs), name
            step.run(StageJob(tmp_path, "cpu", 0.01, scenes=80))
            assert (tmp_path / step.leaves).is_file(), name
    finally:
        signal.signal(signal.SIGTERM, handler)
    means, deviations = torch.load(tmp_path / "latents.pt", weights_only=True)
    assert means.shape == deviations.shape == (80, 4, 16, 16)
    assert abs(float(means.float().std()) - 1) < 0.05
    assert np.load(tmp_path / "generated.npy").shape == (50, 64, 64, 3)


def test_a_registry_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'network unreachable' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RunError, match=r"noto-v1@1\.2\.5 could not be fetched.*unreachable.*shipped weights do not"):
        sprites.fetch(SETS["noto1"], tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="npm, which is not installed"):
        sprites.fetch(SETS["noto1"], tmp_path / "cache")


def test_another_archive_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "iconify-json-noto-v1-1.2.5.tgz").write_bytes(b"something else")
    with pytest.raises(RunError, match=r"noto-v1@1\.2\.5 is not the archive it was: expected sha512-.*removed"):
        sprites.fetch(SETS["noto1"], tmp_path)
    assert not list(tmp_path.iterdir())
