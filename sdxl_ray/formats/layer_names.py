"""Which layers an SDXL has, and what each is called in the formats of the field.

names = LayerNames.of(component_configs(locate(base)))
names.kohya(Layer("unet", "down_blocks.1.attentions.0.proj_in"))     # "lora_unet_input_blocks_4_1_proj_in"
names.find("lora_te1_text_model_encoder_layers_0_mlp_fc1")           # Layer("text_encoder", "text_model.encoder...")
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from sdxl_ray.formats import sgm_names
from sdxl_ray.formats.adapter import PARTS, Layer, Part

Shape = tuple[int, ...]

_KOHYA: dict[Part, str] = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
#: What stands before a dotted path, in the spellings of diffusers, PEFT, ComfyUI and older scripts.
_DOTTED: dict[Part, tuple[str, ...]] = {
    "unet": ("unet.", "base_model.model.unet.", "base_model.model.", ""),
    "text_encoder": ("text_encoder.", "text_encoders.clip_l.transformer.", "base_model.model.text_encoder."),
    "text_encoder_2": ("text_encoder_2.", "text_encoders.clip_g.transformer.", "base_model.model.text_encoder_2."),
}
#: diffusers before PEFT kept adapters in attention processors.
_PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)$")


@dataclass(frozen=True)
class LayerNames:
    """The layers of one SDXL that have weights to change: the shape of each weight by layer.

    sgm: the UNet's names in single files. embeddings: shapes [words, width] of the text encoders' embeddings, which
    PEFT can adapt and no other tool reads.
    """

    shapes: Mapping[Layer, Shape]
    sgm: sgm_names.Renaming
    embeddings: Mapping[Layer, Shape] = field(default_factory=dict)

    @classmethod
    def of(cls, configs: Mapping[str, Mapping[str, Any]]) -> LayerNames:
        """configs: `config.json` of unet, text_encoder and text_encoder_2, by part. No weight is read."""
        shapes: dict[Layer, Shape] = dict(_unet_layers(configs["unet"]))
        shapes |= _text_layers("text_encoder", configs["text_encoder"])
        shapes |= _text_layers("text_encoder_2", configs["text_encoder_2"])
        encoders: tuple[Part, ...] = ("text_encoder", "text_encoder_2")
        embeddings = {layer: shape for part in encoders for layer, shape in _embeddings(part, configs[part])}
        return cls(shapes, sgm_names.unet(configs["unet"]), embeddings)

    def shape(self, layer: Layer) -> Shape:
        """The shape of a layer's weight, of embeddings too. Raises KeyError."""
        return self.embeddings[layer] if layer in self.embeddings else self.shapes[layer]

    def kohya(self, layer: Layer) -> str:
        """The name that kohya's trainers write: SGM names in the UNet, Hugging Face's in the text encoders."""
        module = self.sgm.to_sgm(layer.module) if layer.part == "unet" else layer.module
        assert module is not None, layer
        return _KOHYA[layer.part] + module.replace(".", "_")

    def find(self, name: str) -> Layer | None:
        """The layer that a module's name in a file means, in any spelling; None for one that this SDXL has not."""
        return self._spellings.get(_PROCESSOR.sub(_without_processor, name))

    def is_sgm(self, name: str) -> bool:
        """Whether `name` spells a layer of the UNet as single files do, and not as diffusers does."""
        return name in self._sgm_spellings

    @property
    def text_widths(self) -> tuple[int, int]:
        """The widths of the two text encoders."""
        one, two = (self.shapes[Layer(part, "text_model.final_layer_norm")][0] for part in PARTS[1:])
        return one, two

    @cached_property
    def _sgm_spellings(self) -> dict[str, Layer]:
        found: dict[str, Layer] = {}
        for layer in self.shapes:
            if layer.part == "unet" and (module := self.sgm.to_sgm(layer.module)) is not None:
                found[f"diffusion_model.{module}"] = layer
                for prefix in ("lora_unet_", "lycoris_"):
                    found[prefix + module.replace(".", "_")] = layer
        return found

    @cached_property
    def _spellings(self) -> dict[str, Layer]:
        found = dict(self._sgm_spellings)
        for layer in self.shapes:
            bare = layer.module.removeprefix("text_model.")
            modules = {layer.module, bare}
            for module in modules:
                for prefix in _DOTTED[layer.part]:
                    found[prefix + module] = layer
                found[_KOHYA[layer.part] + module.replace(".", "_")] = layer
            if layer.part == "unet":
                found["lycoris_" + layer.module.replace(".", "_")] = layer
        for layer in self.embeddings:
            for prefix in _DOTTED[layer.part]:
                found[prefix + layer.module] = found[prefix + layer.module.removeprefix("text_model.")] = layer
        return found


def _without_processor(match: re.Match[str]) -> str:
    return ".to_out.0" if match[1] == "out" else f".to_{match[1]}"


def _unet_layers(config: Mapping[str, Any]) -> Iterator[tuple[Layer, Shape]]:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(dict(config))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm):
            yield Layer("unet", name), tuple(module.weight.shape)


def _text_layers(part: Part, config: Mapping[str, Any]) -> dict[Layer, Shape]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, Shape] = {}
    for index in range(config["num_hidden_layers"]):
        block = f"text_model.encoder.layers.{index}"
        shapes |= {f"{block}.self_attn.{which}_proj": (width, width) for which in ("q", "k", "v", "out")}
        shapes |= {f"{block}.mlp.fc1": (inner, width), f"{block}.mlp.fc2": (width, inner)}
        shapes |= {f"{block}.layer_norm{number}": (width,) for number in (1, 2)}
    shapes["text_model.final_layer_norm"] = (width,)
    if part == "text_encoder_2":
        shapes["text_projection"] = (config["projection_dim"], width)
    return {Layer(part, module): shape for module, shape in shapes.items()}


def _embeddings(part: Part, config: Mapping[str, Any]) -> Iterator[tuple[Layer, Shape]]:
    for name, words in (("token", config.get("vocab_size")), ("position", config.get("max_position_embeddings"))):
        if words is not None:
            yield Layer(part, f"text_model.embeddings.{name}_embedding"), (words, config["hidden_size"])
