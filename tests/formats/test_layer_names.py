"""Layers by their names in the formats of the field."""

from __future__ import annotations

from collections import Counter

import pytest

from sdxl_ray.formats import sgm_names
from sdxl_ray.formats.adapter import Layer
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.plan.architecture import sdxl_configs
from tests.formats.adapters import CONVOLUTION, ENCODER_1, tiny_names


@pytest.fixture(scope="module")
def sdxl() -> LayerNames:
    return LayerNames.of(sdxl_configs())


def test_kohyas_default_layers_of_sdxl_have_kohyas_names(sdxl: LayerNames) -> None:
    """Every Linear of the UNet's transformers (722), 72 and 192 of the text encoders: kohya's own numbers."""
    layers = [
        layer
        for layer, shape in sdxl.shapes.items()
        if len(shape) == 2 and ("attentions" in layer.module or "encoder.layers" in layer.module)
    ]
    assert Counter(layer.part for layer in layers) == {"unet": 722, "text_encoder": 72, "text_encoder_2": 192}
    names = {sdxl.kohya(layer) for layer in layers}
    assert len(names) == 722 + 72 + 192
    assert {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_out_0",
        "lora_unet_output_blocks_0_1_proj_in",
        "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_v",
        "lora_te1_text_model_encoder_layers_11_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_31_mlp_fc2",
    } <= names


@pytest.mark.parametrize(
    ("diffusers", "sgm"),
    [
        ("conv_in", "input_blocks.0.0"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op"),
        ("down_blocks.2.attentions.1.proj_out", "input_blocks.8.1.proj_out"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_out", "out.2"),
    ],
)
def test_unet_names_are_those_of_the_released_checkpoint(diffusers: str, sgm: str) -> None:
    names = sgm_names.unet(sdxl_configs()["unet"])
    assert names.to_sgm(diffusers) == sgm
    assert names.to_diffusers(sgm) == diffusers


def test_every_layer_of_the_unet_has_one_name_and_back(sdxl: LayerNames) -> None:
    for names in (sdxl, tiny_names()):
        unet = [layer.module for layer in names.shapes if layer.part == "unet"]
        there = [names.sgm.to_sgm(module) for module in unet]
        assert len(set(there)) == len(unet)
        assert [names.sgm.to_diffusers(str(name)) for name in there] == unet


@pytest.mark.parametrize(
    "spelling",
    [
        "lora_unet_input_blocks_3_0_in_layers_2",
        "lora_unet_down_blocks_1_resnets_0_conv1",
        "lycoris_down_blocks_1_resnets_0_conv1",
        "unet.down_blocks.1.resnets.0.conv1",
        "base_model.model.down_blocks.1.resnets.0.conv1",
        "diffusion_model.input_blocks.3.0.in_layers.2",
        "down_blocks.1.resnets.0.conv1",
    ],
)
def test_a_layer_is_found_by_each_spelling(spelling: str) -> None:
    assert tiny_names().find(spelling) == CONVOLUTION


@pytest.mark.parametrize(
    "spelling",
    [
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te1_encoder_layers_0_self_attn_q_proj",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder.encoder.layers.0.self_attn.q_proj",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
    ],
)
def test_a_text_encoders_layer_is_found_with_and_without_its_wrapper(spelling: str) -> None:
    assert tiny_names().find(spelling) == ENCODER_1


def test_old_diffusers_processors_are_the_layers_they_held() -> None:
    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    assert tiny_names().find(f"unet.{block}.processor.to_q") == Layer("unet", f"{block}.to_q")
    assert tiny_names().find(f"unet.{block}.processor.to_out") == Layer("unet", f"{block}.to_out.0")


def test_a_layer_of_another_model_is_not_found() -> None:
    assert tiny_names().find("lora_unet_double_blocks_0_img_attn_qkv") is None
    assert tiny_names().find("lora_te_text_model_encoder_layers_0_self_attn_q_proj") is None
