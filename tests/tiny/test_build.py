"""The embedded base: the same bytes wherever it is built, and a plain SDXL to every library."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from sdxl_ray.core.weightfiles import read_json
from sdxl_ray.tiny import build, layout, vocabulary

PARAMETERS = {"vae": 648_375, "unet": 4_370_660, "text_encoder": 198_656, "text_encoder_2": 808_576}
HASH = "1b216fae44972309999b5fc3c934cb812942e4b6429b4ff5b21671bdb77ceab6"


def _weights(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_content_hash_only_changes_on_purpose() -> None:
    assert layout.content_hash() == HASH


@pytest.mark.slow
def test_two_processes_that_build_at_once_end_with_one_and_the_same_folder(tmp_path: Path) -> None:
    code = "from sdxl_ray.tiny import build; print(build.folder())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    builders = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [builder.communicate(timeout=120)[0].splitlines()[-1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert outputs[0] == outputs[1]
    assert [path.name for path in (tmp_path / "sdxl_ray").iterdir()] == [Path(outputs[0]).name]
    assert len(_weights(Path(outputs[0]))) == 4
    assert _weights(Path(outputs[0])) == _weights(build.folder())


def test_building_leaves_the_random_states_of_the_caller_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(4), np.random.rand(4)
    torch.manual_seed(3)
    np.random.seed(3)
    build.folder()
    assert torch.equal(torch.rand(4), expected[0])
    assert np.array_equal(np.random.rand(4), expected[1])


def test_it_loads_as_a_plain_sdxl_pipeline_with_the_layout_promised() -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(build.folder())
    counts = {name: sum(weight.numel() for weight in getattr(pipe, name).parameters()) for name in PARAMETERS}
    assert counts == PARAMETERS
    assert pipe.config.force_zeros_for_empty_prompt is True
    assert pipe.vae_scale_factor == 4
    assert pipe.default_sample_size == 16
    assert pipe.vae.config.scaling_factor == 1.0
    assert pipe.scheduler.config.timestep_spacing == "leading"
    assert pipe.tokenizer.model_max_length == pipe.tokenizer_2.model_max_length == 32


def test_the_layout_agrees_with_the_files_it_is_built_into() -> None:
    for part, config in layout.configs().items():
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        written = read_json(build.folder() / part / file)
        assert {key: written.get(key) for key in config} == config, part


def test_every_known_word_is_one_token_and_any_prompt_can_be_tokenised() -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(build.folder())
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
        for word in vocabulary.words():
            assert len(tokenizer(word).input_ids) == 3, word
        strange = 'Ünï©ödé 漢字 🦊 q9x7! <tag> "quoted" a_b\tc'
        inside = tokenizer(strange).input_ids[1:-1]
        assert len(inside) > 20
        # The end token is also the unknown token.
        assert tokenizer.eos_token_id not in inside


def test_latents_have_about_unit_variance_and_a_narrow_posterior() -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(build.folder())
    across = torch.linspace(-1, 1, 64)
    image_BCHW = torch.stack([across.expand(64, 64), across[:, None].expand(64, 64), across.outer(across)])[None]
    with torch.no_grad():
        posterior = pipe.vae.encode(image_BCHW).latent_dist
    assert 0.5 < posterior.mean.std() < 2
    assert torch.allclose(posterior.std, torch.tensor(0.0498), atol=1e-3)
