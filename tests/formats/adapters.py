"""Adapters with random factors on layers of the embedded base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from sdxl_ray.config.schema import Base
from sdxl_ray.formats.adapter import Adapter, Layer, LowRank
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.models.base_model_files import BaseFiles, component_configs, locate

TINY = Base(id="tiny")
ATTENTION = Layer("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
PROJECTION = Layer("unet", "up_blocks.0.attentions.0.proj_in")
CONVOLUTION = Layer("unet", "down_blocks.1.resnets.0.conv1")
ENCODER_1 = Layer("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj")
ENCODER_2 = Layer("text_encoder_2", "text_model.encoder.layers.1.self_attn.out_proj")
MLP_2 = Layer("text_encoder_2", "text_model.encoder.layers.1.mlp.fc1")
EVERYWHERE = (ATTENTION, PROJECTION, CONVOLUTION, ENCODER_1, ENCODER_2, MLP_2)


@cache
def tiny_files() -> BaseFiles:
    """The embedded base, located once."""
    return locate(TINY)


@cache
def tiny_names() -> LayerNames:
    """The embedded base's layers, built once: it takes a second."""
    return LayerNames.of(component_configs(tiny_files()))


def random_pair(shape: Sequence[int], rank: int, alpha: float, seed: int, dora: bool = False) -> LowRank:
    """Factors for a weight of this shape, strong enough to change an image."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator) / shape[1] ** 0.5
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) / rank**0.5
    magnitude = torch.rand(shape[0], generator=generator) + 0.5 if dora else None
    return LowRank(down, up, alpha, magnitude)


def random_adapter(
    layers: Sequence[Layer] = EVERYWHERE, rank: int = 4, alpha: float = 2.0, seed: int = 0, dora: bool = False
) -> Adapter:
    """An adapter on `layers` of the embedded base."""
    shapes = tiny_names().shapes
    pairs = {layer: random_pair(shapes[layer], rank, alpha, seed + i, dora) for i, layer in enumerate(layers)}
    return Adapter(pairs)


def kohya_file(folder: Path, adapter: Adapter, name: str = "foreign.safetensors") -> Path:
    """The adapter as another tool would hand it on."""
    from safetensors.torch import save_file

    from sdxl_ray.formats.kohya import kohya_tensors

    save_file(kohya_tensors(adapter, tiny_names()), folder / name)
    return folder / name
