"""Names of SDXL's layers in diffusers' folders and in single files ("SGM" names, of Stability AI's generative-models).

Each function gives a table `diffusers prefix -> SGM prefix` that is derived from a component's config, because the
numbers of blocks depend on it: the embedded base has other indices than SDXL. `Renaming` applies a table both ways.
Source of the rules: kohya-ss/sd-scripts, `library/sdxl_model_util.py`; diffusers' own exporter writes the same names,
and the released SDXL checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

#: Parts of a resnet: diffusers' name -> SGM's.
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


@dataclass(frozen=True)
class Renaming:
    """Renames layers and tensors by the longest matching prefix that ends at a dot."""

    prefixes: Mapping[str, str]

    def to_sgm(self, name: str) -> str | None:
        """The SGM name of a diffusers layer or tensor, or None for one that the table does not know."""
        return _renamed(name, self.prefixes)

    def to_diffusers(self, name: str) -> str | None:
        """The inverse of `to_sgm`."""
        return _renamed(name, self._inverse)

    @cached_property
    def _inverse(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in self.prefixes.items()}


def unet(config: Mapping[str, Any]) -> Renaming:
    """The UNet's names; config: its `config.json`."""
    layers, down, up = config["layers_per_block"], config["down_block_types"], config["up_block_types"]
    per_level = list(layers) if isinstance(layers, list | tuple) else [layers] * len(down)
    table = dict(_UNET_ENDS)
    index = 1
    for level, (kind, count) in enumerate(zip(down, per_level, strict=True)):
        for layer in range(count):
            table |= _block(f"down_blocks.{level}", layer, f"input_blocks.{index}", "CrossAttn" in kind)
            index += 1
        if level < len(down) - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
            index += 1
    table |= _parts("mid_block.resnets.0", "middle_block.0", _UNET_RESNET)
    table["mid_block.attentions.0"] = "middle_block.1"
    table |= _parts("mid_block.resnets.1", "middle_block.2", _UNET_RESNET)
    index = 0
    for level, (kind, count) in enumerate(zip(up, reversed(per_level), strict=True)):
        for layer in range(count + 1):
            table |= _block(f"up_blocks.{level}", layer, f"output_blocks.{index}", "CrossAttn" in kind)
            index += 1
        if level < len(up) - 1:
            place = 2 if "CrossAttn" in kind else 1
            table[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{index - 1}.{place}.conv"
    return Renaming(table)


def vae(config: Mapping[str, Any]) -> Renaming:
    """The VAE's names; SGM counts the decoder's blocks from the end, and its attention is made of 1x1 convolutions."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        table |= {
            f"{side}.conv_in": f"{side}.conv_in",
            f"{side}.conv_out": f"{side}.conv_out",
            f"{side}.conv_norm_out": f"{side}.norm_out",
            **_parts(f"{side}.mid_block.resnets.0", f"{side}.mid.block_1", _VAE_RESNET),
            **_parts(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", _VAE_ATTENTION),
            **_parts(f"{side}.mid_block.resnets.1", f"{side}.mid.block_2", _VAE_RESNET),
        }
    for level in range(levels):
        encoder, decoder = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        for layer in range(layers):
            table |= _parts(f"encoder.down_blocks.{level}.resnets.{layer}", f"{encoder}.block.{layer}", _VAE_RESNET)
        for layer in range(layers + 1):
            table |= _parts(f"decoder.up_blocks.{level}.resnets.{layer}", f"{decoder}.block.{layer}", _VAE_RESNET)
        if level < levels - 1:
            table[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"{encoder}.downsample.conv"
            table[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"{decoder}.upsample.conv"
    return Renaming(table)


def _block(ours: str, layer: int, theirs: str, attention: bool) -> dict[str, str]:
    table = _parts(f"{ours}.resnets.{layer}", f"{theirs}.0", _UNET_RESNET)
    return {**table, f"{ours}.attentions.{layer}": f"{theirs}.1"} if attention else table


def _parts(ours: str, theirs: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{one}": f"{theirs}.{other}" for one, other in parts.items()}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str | None:
    head, tail = name, ""
    while head:
        if head in prefixes:
            return prefixes[head] + tail
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return None
