"""What PEFT and diffusers keep beside the tensors of a LoRA: rank and alpha, in the metadata or in a JSON file.

Written here are only the fields that a reader needs. PEFT's own `to_dict` writes every field of its newest
configuration, which an older PEFT refuses with a TypeError.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdxl_ray.formats.adapter import Adapter, Layer, LowRank, stabilised

#: diffusers' key in the metadata of a safetensors file; its value is JSON with `unet.r`, `unet.lora_alpha`, ...
METADATA_KEY = "lora_adapter_metadata"


@dataclass(frozen=True)
class PeftAlphas:
    """Alphas by PEFT's configuration of each part ("unet", "text_encoder", "text_encoder_2")."""

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> PeftAlphas:
        """Of the metadata of a file that diffusers wrote; without any, every alpha is the layer's rank."""
        try:
            flat = json.loads(metadata.get(METADATA_KEY, "{}"))
        except ValueError:
            flat = {}
        configs: dict[str, dict[str, Any]] = {}
        for name, value in (flat if isinstance(flat, dict) else {}).items():
            part, _, setting = name.partition(".")
            configs.setdefault(part, {})[setting] = value
        return cls(configs)

    def of(self, layer: Layer, rank: int) -> float:
        """The alpha of a layer for readers that divide by the rank."""
        config = self.configs.get(layer.part, {})
        alpha = config.get("lora_alpha", rank)
        for pattern, own in (config.get("alpha_pattern") or {}).items():
            # PEFT's rule: the pattern matches a whole tail of the module's name, whose text encoders may lack a prefix.
            if re.match(rf"(.*\.)?({pattern})$", layer.module):
                alpha = own
                break
        alpha = float(alpha)
        return stabilised(alpha, rank) if config.get("use_rslora") else alpha


def peft_configs(adapter: Adapter) -> dict[str, dict[str, Any]]:
    """For each part with low-rank pairs, the arguments of `peft.LoraConfig` that give exactly its layers.

    The most frequent rank and alpha are the general ones, the others are patterns. The names of text encoders' layers
    lack `text_model.`, so that they are a tail of the name in every version of transformers.
    """
    configs: dict[str, dict[str, Any]] = {}
    for part in adapter.parts:
        pairs = {
            layer.module.removeprefix("text_model."): p for layer, p in adapter.low_rank.items() if layer.part == part
        }
        if pairs:
            configs[part] = _config(pairs)
    return configs


def packed(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The value of `METADATA_KEY`."""
    flat = {f"{part}.{setting}": value for part, config in configs.items() for setting, value in config.items()}
    return json.dumps(flat, sort_keys=True)


def _config(pairs: Mapping[str, LowRank]) -> dict[str, Any]:
    ranks = {module: pair.rank for module, pair in pairs.items()}
    alphas = {module: _number(pair.alpha) for module, pair in pairs.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "alpha_pattern": {module: own for module, own in alphas.items() if own != alpha},
        "target_modules": sorted(pairs),
        "use_dora": any(pair.magnitude is not None for pair in pairs.values()),
        "use_rslora": False,
    }


def _number(alpha: float) -> float | int:
    return int(alpha) if math.isfinite(alpha) and alpha == int(alpha) else alpha
