"""The configs and tokenizers of SDXL base 1.0 that ship with the package, and which single files they belong to.

A single file (one `.safetensors` checkpoint in SGM names, as model sites offer) has weights alone. Most have the layers
of SDXL base 1.0; its configs describe those, and no others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdxl_ray.errors import UserError

#: A diffusers folder without weights.
CONFIGS = Path(__file__).parents[1] / "sdxl_base"

_UNET = "model.diffusion_model."
#: Layers of each stack; SSD-1B, Vega and other distilled models have fewer in the UNet.
_LAYERS = {
    **{f"{_UNET}input_blocks.{n}.1.transformer_blocks": depth for n, depth in ((4, 2), (5, 2), (7, 10), (8, 10))},
    f"{_UNET}middle_block.1.transformer_blocks": 10,
    **{f"{_UNET}output_blocks.{n}.1.transformer_blocks": 10 if n < 3 else 2 for n in range(6)},
    "conditioner.embedders.0.transformer.text_model.encoder.layers": 12,
    "conditioner.embedders.1.model.transformer.resblocks": 32,
}
#: One tensor of each part and width; names that a file lacks are no difference (its own error says what is missing).
_SHAPES = {
    f"{_UNET}input_blocks.0.0.weight": [320, 4, 3, 3],
    f"{_UNET}label_emb.0.0.weight": [1280, 2816],
    f"{_UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": [640, 2048],
    f"{_UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": [1280, 2048],
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": [49408, 768],
    "conditioner.embedders.1.model.token_embedding.weight": [49408, 1280],
    "first_stage_model.decoder.conv_in.weight": [512, 4, 3, 3],
}


def require_sdxl_shapes(header: Mapping[str, Any], name: str) -> None:
    """Raise UserError unless the shipped configs describe a single file. header: its tensors (`read_header`)."""
    what = _difference(header)
    if what is not None:
        raise UserError(
            f"base {name!r}: a single file has no configs, and SDXL base 1.0's do not describe this one ({what}): "
            "set base.config=FOLDER, a diffusers folder of the same model (its weights are not needed)"
        )


def _difference(header: Mapping[str, Any]) -> str | None:
    if "edm_mean" in header:
        return "it is Playground v2.5, which has another noise schedule"
    for name, wanted in _SHAPES.items():
        shape = header[name].get("shape") if name in header else wanted
        if shape != wanted:
            return f"{name} has the shape {shape}, not {wanted}"
    layers = _layers(header)
    for stack, count in _LAYERS.items():
        if layers[stack] != count:
            return f"{stack} has {layers[stack]} layers, not {count}"
    return None


def _layers(header: Mapping[str, Any]) -> Counter[str]:
    """How many numbered layers each stack has."""
    numbered = re.compile(r".*?(?:transformer_blocks|layers|resblocks)\.\d+")
    found = {match[0] for name in header if (match := numbered.match(name))}
    return Counter(layer.rpartition(".")[0] for layer in found)
