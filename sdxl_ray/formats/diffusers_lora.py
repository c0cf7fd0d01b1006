"""diffusers' LoRA files: PEFT's names below `unet.`, `text_encoder.` and `text_encoder_2.`, rank and alpha beside them.

Text encoders' layers have `text_model.` in their names whatever transformers calls them in memory: ComfyUI and
diffusers on transformers before 5.6 find them only so, and newer versions read both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Adapter, Layer, LowRank
from sdxl_ray.formats.peft_metadata import METADATA_KEY, packed, peft_configs


def diffusers_tensors(adapter: Adapter, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, contiguous and on the CPU, and the file's metadata. dtype None: as they are.

    Raises UserError for what diffusers cannot load: LyCORIS' kinds, DoRA in some layers of a part only, and a text
    encoder of which only other layers than attention are changed.
    """
    if adapter.lycoris:
        layer, change = next(iter(adapter.lycoris.items()))
        raise UserError(
            f"diffusers' LoRA format holds low-rank pairs only, and {layer.module} is {change.kind}: use kohya's format"
        )
    _require_dora_throughout(adapter)
    _require_attention(adapter)
    tensors: dict[str, Tensor] = {}
    for layer, pair in adapter.low_rank.items():
        name = f"{layer.part}.{layer.module}"
        if layer.module.startswith("text_model.embeddings."):
            roles = {"lora_embedding_A": pair.up.T, "lora_embedding_B": pair.down.T}  # PEFT's, of [words, width]
        else:
            roles = {"lora_A.weight": pair.down, "lora_B.weight": pair.up}
        if pair.magnitude is not None:
            # transformers, which places the adapters of text encoders, does not find PEFT's own name for it.
            name_of_magnitude = "lora_magnitude_vector" + ("" if layer.part == "unet" else ".weight")
            roles[name_of_magnitude] = _peft_magnitude(pair)
        for role, tensor in roles.items():
            tensors[f"{name}.{role}"] = tensor.detach().to("cpu", dtype).contiguous()
    return tensors, {"format": "pt", METADATA_KEY: packed(peft_configs(adapter))}


def _peft_magnitude(pair: LowRank) -> Tensor:
    assert pair.magnitude is not None
    convolution = pair.down.dim() == 4
    return pair.magnitude.reshape(1, -1, 1, 1) if convolution else pair.magnitude


def _require_dora_throughout(adapter: Adapter) -> None:
    for part in adapter.parts:
        pairs: dict[Layer, LowRank] = {layer: pair for layer, pair in adapter.low_rank.items() if layer.part == part}
        without = [layer.module for layer, pair in pairs.items() if pair.magnitude is None]
        if without and len(without) < len(pairs):
            raise UserError(
                f"diffusers' LoRA format has DoRA in all layers of the {part} or in none, and {without[0]} has no "
                "magnitude: use kohya's format"
            )


def _require_attention(adapter: Adapter) -> None:
    """diffusers infers the spelling of a text encoder's tensors from its attention layers."""
    for part in ("text_encoder", "text_encoder_2"):
        modules = [layer.module for layer in adapter.low_rank if layer.part == part]
        if modules and not any(".self_attn." in module for module in modules):
            raise UserError(
                f"diffusers loads a LoRA of a text encoder only where it has attention layers, and the {part} has "
                f"only others, as {modules[0]}: use kohya's format"
            )
