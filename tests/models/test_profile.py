"""The shipped censuses against the models themselves, built on the meta device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.recipe import override
from sdxl_ray.config.schema import Base
from sdxl_ray.models import profile as taking
from sdxl_ray.models.adapters import TUNINGS
from sdxl_ray.models.denoiser import Denoiser
from sdxl_ray.models.meta_memory import training_bytes
from sdxl_ray.plan import architecture
from sdxl_ray.plan.architecture import SDXL, TINY
from sdxl_ray.plan.profile import ModelProfile
from sdxl_ray.plan.sizes import sizes

pytestmark = pytest.mark.slow


def shipped(name: str) -> ModelProfile:
    return architecture.profile(taking.known()[name])


@pytest.mark.parametrize("name", [SDXL, TINY])
def test_shipped_counts_are_the_models(name: str) -> None:
    taker, profile = taking.Profiler(name, taking.known()[name]), shipped(name)
    assert {part: taking.component(part, module) for part, module in taker.parts.items()} == profile.components
    assert (profile.name, profile.vae_factor, profile.text_tokens) == (name, taker.vae_factor, taker.tokens)
    for part in ("unet", "vae_decode", "text_encoder_2"):
        assert taker.flop(part, taker.parts[taking._module_of(part)], train=False) == profile.flop[part]


def test_shipped_training_record_is_the_models() -> None:
    taker, profile = taking.Profiler(TINY, taking.known()[TINY]), shipped(TINY)
    assert taker.training("unet", "full", checkpointing=True) == profile.train("unet", "full", checkpointing=True)
    assert taker.inference("vae_decode") == profile.inference["vae_decode"]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [TINY, SDXL])
def test_the_whole_shipped_census(name: str) -> None:
    assert taking.take(name, taking.known()[name]) == shipped(name)


def test_the_tables_name_of_the_embedded_base_is_its_layout() -> None:
    assert architecture.of(Base(id="tiny")).profile == shipped(TINY)


@pytest.mark.parametrize(("batch", "side"), [(3, 20), (2, 24), (1, 12)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_linear_in_batch_and_pixels(batch: int, side: int, checkpointing: bool) -> None:
    taker, profile = taking.Profiler(TINY, taking.known()[TINY]), shipped(TINY)
    module = nn.Module.to(taker._trainable("unet", "lora", 16, checkpointing), torch.bfloat16)
    known, forward = taker.inputs("unet", batch, side, torch.bfloat16)
    measured = max(peak for _, peak in training_bytes(module, known, lambda: forward(module), taking._stretch))
    record = profile.train("unet", "lora", checkpointing)
    assert max(s.live.at(batch, side * side) for s in record.segments) == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tuning.rank": 5, "tuning.use_dora": True},
        {
            "tuning.target_modules": ["to_q", "ff.net.2", "conv1", "proj_in"],
            "tuning.rank_pattern": {"mid_block.*to_q": 3},
        },
        {"tuning.text_encoders": [1, 2], "tuning.text_target_modules": ["q_proj", "fc1"]},
        {"tuning.kind": "full"},
        {"tuning.kind": "full", "tuning.text_encoders": [1, 2]},
    ],
)
def test_trained_scalars_are_those_of_the_tuning_itself(changes: dict[str, Any]) -> None:
    recipe = override(recipe_files.load("tiny_lora"), changes)
    parts = taking.build(taking.known()[TINY])
    with torch.device("cpu"):
        real = {name: module.to_empty(device="cpu") for name, module in parts.items()}
    one, two = (
        real[n] if i in recipe.tuning.text_encoders else None for i, n in ((1, "text_encoder"), (2, "text_encoder_2"))
    )
    trainable = TUNINGS[type(recipe.tuning)].prepare(Denoiser(real["unet"], one, two), recipe.tuning, 0)
    counted = sizes(recipe, shipped(TINY))
    assert counted.trained == trainable.count
    if recipe.tuning.kind == "lora":
        assert sum(part.tensors for part in counted.parts) == len(trainable.named)


def test_recording_sees_every_allocation() -> None:
    """Two linear layers with a ReLU between them, by hand, batch 8: each layer's input is kept for its weight."""
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to("meta")
    x = torch.empty(8, 16, device="meta")
    peaks = training_bytes(module, [x], lambda: module(x), lambda name: name.split(".")[0])
    # Keys: layer 2 then layer 0. At the end of the forward: ReLU's output (kept for its own backward) and the output;
    # in backward of layer 2 the output's gradient, that of its input, and those of weight and bias join them.
    relu, out = 8 * 32 * 4, 8 * 4 * 4
    assert [done for done, _ in peaks] == [32 * 4 + 4, 32 * 4 + 4 + 16 * 32 + 32]
    assert relu + 2 * out <= peaks[0][1] <= 2 * relu + 3 * out + 4 * (32 * 4 + 4)


@pytest.mark.slow
def test_an_unknown_architecture_is_counted_once_in_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = {part: dict(settings) for part, settings in taking.known()[TINY].items() if part != "scheduler"}
    configs["unet"]["block_out_channels"] = [16, 32]
    configs["unet"] |= {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "transformer_layers_per_block": [1, 1],
    }
    configs["unet"] |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "attention_head_dim": [1, 2]}
    base = tmp_path / "base"
    for part, settings in configs.items():
        (base / part).mkdir(parents=True)
        (base / part / "config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(architecture, "CHILD", [sys.executable, str(_fast_child(tmp_path))])
    found = architecture.of(Base(id=str(base))).profile
    expected = sum(p.numel() for p in taking.build(configs)["unet"].parameters())
    assert found.components["unet"].parameters == expected
    assert "counting a new architecture" in capsys.readouterr().err
    monkeypatch.setattr(architecture, "CHILD", [sys.executable, "-c", "raise SystemExit(1)"])
    assert architecture.of(Base(id=str(base))).profile == found  # read again, not taken again


def test_parts_of_a_known_architecture_are_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "MODES", ())
    configs, known = taking.known()[TINY], shipped(TINY)
    marked = known.model_copy(update={"flop": {**known.flop, "vae_decode": known.flop["unet"]}})
    seen: list[tuple[int, int]] = []
    other = {**configs, "unet": {**configs["unet"], "norm_num_groups": 4}}
    found = taking.take("other", other, (configs, marked), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]  # the UNet's arithmetic and memory
    assert found.flop == marked.flop and found.inference == known.inference
    assert (found.training["text_encoder"], found.training["unet"]) == (known.training["text_encoder"], ())
    larger = {**configs, "unet": {**configs["unet"], "sample_size": 2 * configs["unet"]["sample_size"]}}
    assert taking._same_parts(larger, configs) == frozenset()


def _fast_child(folder: Path) -> Path:
    """The real child, for records of full fine-tuning only: a whole profile takes a minute even of a small model."""
    path = folder / "child.py"
    path.write_text(
        "from sdxl_ray.models import profile\nprofile.MODES = ('full',)\nraise SystemExit(profile.main())\n"
    )
    return path


def test_configs_that_are_no_model_are_the_users_error(tmp_path: Path) -> None:
    configs = {part: dict(settings) for part, settings in taking.known()[TINY].items()}
    configs["unet"]["down_block_types"] = ["NoSuchBlock", "DownBlock2D", "DownBlock2D"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sdxl_ray.models.profile", str(tmp_path / "out.json")]
    done = subprocess.run(
        command, input=json.dumps(configs), capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("unet: ")
    assert not list(tmp_path.iterdir())
