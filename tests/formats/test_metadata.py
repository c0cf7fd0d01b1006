"""What a LoRA's file says of itself to tools and sites."""

from __future__ import annotations

import json
from pathlib import Path

from sdxl_ray.config.recipe import load, override
from sdxl_ray.formats.adapter import Adapter, Lycoris
from sdxl_ray.formats.metadata import checkpoint_metadata, lora_metadata
from tests.formats.adapters import ATTENTION, CONVOLUTION, random_adapter

RECIPE = override(load("lora"), {"data.subject": "sks dog"})


def test_a1111_and_sites_find_family_rank_and_trigger() -> None:
    found = lora_metadata(random_adapter([ATTENTION], rank=4, alpha=2.0), RECIPE, 1024)
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert found["modelspec.title"] == found["modelspec.trigger_phrase"] == "sks dog"
    assert found["modelspec.resolution"] == "1024x1024"
    assert found["ss_base_model_version"].startswith("sdxl_")
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("4", "2.0")
    assert found["ss_network_module"] == "networks.lora"
    assert found["ss_output_name"] == "sks-dog"
    assert all(isinstance(value, str) and value for value in found.values())


def test_convolutions_and_other_kinds_are_said() -> None:
    both = random_adapter([ATTENTION, CONVOLUTION], rank=4, alpha=2.0)
    assert json.loads(lora_metadata(both, RECIPE)["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "2.0"}
    other = lora_metadata(Adapter({ATTENTION: Lycoris("loha", {})}), RECIPE)
    assert other["ss_network_module"] == "lycoris.kohya"
    assert "ss_network_dim" not in other


def test_no_path_of_this_machine_is_in_it(tmp_path: Path) -> None:
    local = override(RECIPE, {"base": str(tmp_path / "models" / "my_sdxl.safetensors")})
    found = lora_metadata(random_adapter([ATTENTION]), local)
    assert str(tmp_path) not in json.dumps(found)
    assert found["ss_sd_model_name"] == "my_sdxl.safetensors"


def test_a_checkpoint_says_what_it_predicts() -> None:
    found = checkpoint_metadata(RECIPE, "v_prediction", 1024)
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert found["modelspec.prediction_type"] == "v"
    assert checkpoint_metadata(RECIPE, "epsilon")["modelspec.prediction_type"] == "epsilon"
