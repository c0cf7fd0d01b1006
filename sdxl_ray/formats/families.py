"""Which family of models a file belongs to, told by the names and shapes of its tensors.

Families with a UNet differ in the width of the text that cross-attention reads; transformers have other blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SDXL = "SDXL"

#: Width of the text that cross-attention's keys read -> family.
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: SDXL, 1280: "the SDXL refiner"}
_KEYS_OF_TEXT = re.compile(r"attn2[._](?:processor[._])?to_k\b|attn2_to_k")
#: What a tensor's name holds -> family, most certain first.
_NAMES = (
    (re.compile(r"double_blocks|single_blocks|single_transformer_blocks"), "FLUX"),
    (re.compile(r"joint_blocks|transformer_blocks_\d+_attn_add_|\.attn\.add_[qkv]_proj"), "Stable Diffusion 3"),
    (
        re.compile(r"^(?:lora_)?transformer[._]"),
        "a diffusion transformer (PixArt, SD 3, Sana ...)",
    ),
    (re.compile(r"^lora_te_"), "Stable Diffusion 1.x or 2.x"),
)


def family_of(header: Mapping[str, Any]) -> str | None:
    """The family, or None where nothing tells it. header: tensors with their shapes, as `read_header` gives them.

    A width that is no family's (the embedded base's) tells nothing.
    """
    for name, tensor in header.items():
        if _KEYS_OF_TEXT.search(name) and (width := _input_width(name, tensor["shape"])) in _WIDTHS:
            return _WIDTHS[width]
    for pattern, family in _NAMES:
        if any(pattern.search(name) for name in header):
            return family
    if any(name.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for name in header):
        return SDXL
    return None


def _input_width(name: str, shape: list[int]) -> int | None:
    """The width that a layer reads, of a whole weight [out, in] or of the matrix that is multiplied first [r, in]."""
    reads = name.endswith((".lora_down.weight", ".lora.down.weight", ".down.weight", ".to_k.weight", ".diff"))
    reads = reads or re.search(r"\.lora_A(?:\.\w+)?\.weight$|\.hada_w[12]_b$", name) is not None
    return shape[1] if reads and len(shape) >= 2 else None
