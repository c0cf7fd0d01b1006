"""Writes an SDXL folder as one checkpoint in SGM names, encoder 2 in OpenCLIP's, to read it back in a test."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
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
_OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def write_single_file(folder: Path, target: Path, extra: Weights | None = None) -> None:
    """folder: the embedded base (three levels, one layer a block). extra: more tensors by name."""
    tensors = {f"model.diffusion_model.{name}": value for name, value in _unet(folder).items()}
    tensors |= {f"first_stage_model.{name}": value for name, value in _vae(folder).items()}
    for name, value in load_file(folder / "text_encoder" / "model.safetensors").items():
        tensors[f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    tensors |= {f"conditioner.embedders.1.model.{name}": value for name, value in _open_clip(folder).items()}
    save_file({name: value.contiguous() for name, value in {**tensors, **(extra or {})}.items()}, target)


def _rename(name: str, prefixes: dict[str, str]) -> str:
    for ours, theirs in prefixes.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def _unet(folder: Path) -> Weights:
    prefixes = dict(_UNET_ENDS)
    for level in range(3):
        prefixes |= {
            f"down_blocks.{level}.resnets.0": f"input_blocks.{1 + 2 * level}.0",
            f"down_blocks.{level}.attentions.0": f"input_blocks.{1 + 2 * level}.1",
            f"down_blocks.{level}.downsamplers.0.conv": f"input_blocks.{2 + 2 * level}.0.op",
            f"up_blocks.{level}.upsamplers.0.conv": f"output_blocks.{2 * level + 1}.{2 if level < 2 else 1}.conv",
        }
        for layer in range(2):
            prefixes[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{2 * level + layer}.0"
            prefixes[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{2 * level + layer}.1"
    prefixes |= {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    prefixes["mid_block.attentions.0"] = "middle_block.1"
    renamed = {}
    for name, value in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        theirs = _rename(name, prefixes)
        if ".resnets." in name:
            for part, other in _RESNET.items():
                theirs = theirs.replace(f".{part}.", f".{other}.")
        renamed[theirs] = value
    return renamed


def _vae(folder: Path) -> Weights:
    prefixes = {}
    for side in ("encoder", "decoder"):
        prefixes |= {
            f"{side}.conv_in": f"{side}.conv_in",
            f"{side}.conv_out": f"{side}.conv_out",
            f"{side}.conv_norm_out": f"{side}.norm_out",
            f"{side}.mid_block.resnets.0": f"{side}.mid.block_1",
            f"{side}.mid_block.resnets.1": f"{side}.mid.block_2",
        }
    for level in range(3):
        prefixes[f"encoder.down_blocks.{level}.resnets.0"] = f"encoder.down.{level}.block.0"
        prefixes[f"encoder.down_blocks.{level}.downsamplers.0"] = f"encoder.down.{level}.downsample"
        prefixes[f"decoder.up_blocks.{level}.upsamplers.0"] = f"decoder.up.{2 - level}.upsample"
        for layer in range(2):
            prefixes[f"decoder.up_blocks.{level}.resnets.{layer}"] = f"decoder.up.{2 - level}.block.{layer}"
    prefixes |= {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    return {_rename(name, prefixes).replace("conv_shortcut", "nin_shortcut"): value for name, value in weights.items()}


def _open_clip(folder: Path) -> Weights:
    weights = load_file(folder / "text_encoder_2" / "model.safetensors")
    renamed = {"text_projection": weights.pop("text_projection.weight").T}
    for name, value in weights.items():
        if name in _OPEN_CLIP:
            renamed[_OPEN_CLIP[name]] = value
            continue
        layer, _, rest = name.removeprefix("text_model.encoder.layers.").partition(".")
        block = f"transformer.resblocks.{layer}"
        part, _, kind = rest.rpartition(".")
        if part == "self_attn.q_proj":
            rows = [weights[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            renamed[f"{block}.attn.in_proj_{kind}"] = torch.cat(rows)
        elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
            renamed[f"{block}.{_OPEN_CLIP_LAYER[part]}.{kind}"] = value
    return renamed
