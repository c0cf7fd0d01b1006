"""An adapter written into the weights: what PEFT's layers cannot hold (LyCORIS' kinds, DoRA in some layers only)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import PARTS, Adapter, Layer
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.lora_files import read_lora
from sdxl_ray.formats.lycoris import changed_bias, changed_weight, changes_bias
from sdxl_ray.models.base_model_files import component_configs, locate


def apply_file(pipe: Any, file: Path, base: Base, where: str) -> None:
    """Change the weights of a pipeline of `base` by all layers of a LoRA file.

    Raises UserError as `read_lora` and `apply_adapter`, and for tensors that fit no layer.
    """
    adapter, unused = read_lora(file, LayerNames.of(component_configs(locate(base))), where)
    if unused:
        raise UserError(f"{where}: {file.name} has {len(unused)} tensors that fit no layer, as {unused[0]}")
    apply_adapter({part: getattr(pipe, part) for part in PARTS}, adapter, where)


@torch.no_grad()
def apply_adapter(models: Mapping[str, nn.Module], adapter: Adapter, where: str, strength: float = 1.0) -> None:
    """Change the weights of the UNet and the text encoders in place, layer by layer, in fp32.

    models: by part, without PEFT's layers. strength: as in `changed_weight`.
    Raises UserError for a layer that a model has not, before any weight is changed.
    """
    layers = {layer: _module(models, layer, where) for layer in adapter.layers}
    for layer, change in adapter.layers.items():
        if changes_bias(change) and layers[layer].bias is None:
            raise UserError(f"{where} changes the bias of {layer.part} {layer.module}, which has none in this base")
    for layer, change in adapter.layers.items():
        module = layers[layer]
        module.weight.copy_(changed_weight(change, module.weight, strength))
        if module.bias is not None:
            module.bias.copy_(changed_bias(change, module.bias, strength))


def _module(models: Mapping[str, nn.Module], layer: Layer, where: str) -> Any:
    """The layer in memory, where transformers since 5.6 has no `text_model`."""
    for name in (layer.module, layer.module.removeprefix("text_model.")):
        try:
            return models[layer.part].get_submodule(name)
        except AttributeError:
            continue
    raise UserError(f"{where} changes {layer.part} {layer.module}, which this base has not: give the base it is for")
