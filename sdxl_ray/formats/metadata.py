"""Metadata by which tools and model sites know what a file is: `modelspec.*` and kohya's `ss_*`.

Sources: Stability-AI/ModelSpec 1.0.1; kohya-ss/sd-scripts `library/sai_model_spec.py` and `train_network.py`. No date
is written, so that the same run gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.formats.adapter import Adapter

_ARCHITECTURE = "stable-diffusion-xl-v1-base"
#: What kohya's scripts name for every SDXL file in their own spelling.
_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"


def lora_metadata(adapter: Adapter, recipe: Recipe, resolution: int | None = None) -> dict[str, str]:
    """Metadata of a LoRA in kohya's names. resolution: pixels of a side that it was trained with, where it is known."""
    ranks = Counter(pair.rank for pair in adapter.low_rank.values())
    alphas = Counter(pair.alpha for pair in adapter.low_rank.values())
    title = title_of(recipe)
    found = {
        **_model_spec(recipe, f"{_ARCHITECTURE}/lora", resolution),
        # A1111 tells the family by the beginning of this one.
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "ss_network_module": "lycoris.kohya" if adapter.lycoris else "networks.lora",
        "ss_network_dim": str(ranks.most_common(1)[0][0]) if ranks else "",
        "ss_network_alpha": str(float(alphas.most_common(1)[0][0])) if alphas else "",
        "ss_network_args": json.dumps(_network_arguments(adapter)),
        "ss_output_name": re.sub(r"[^\w.-]+", "-", title).strip("-"),
        "ss_sd_model_name": recipe.base.id.rsplit("/", 1)[-1] if recipe.base.id.startswith("/") else recipe.base.id,
    }
    if resolution is not None:
        found["ss_resolution"] = f"({resolution}, {resolution})"
    return {key: value for key, value in found.items() if value}


def checkpoint_metadata(recipe: Recipe, prediction: str, resolution: int | None = None) -> dict[str, str]:
    """Metadata of a whole model in one file. prediction: of its scheduler, as diffusers names it."""
    kind = "v" if prediction == "v_prediction" else "epsilon"
    return {**_model_spec(recipe, _ARCHITECTURE, resolution), "modelspec.prediction_type": kind}


def title_of(recipe: Recipe) -> str:
    """What a model is called in a list: its subject, else what it is."""
    return recipe.data.subject or f"sdxl-ray {recipe.tuning.kind}"


def _model_spec(recipe: Recipe, architecture: str, resolution: int | None) -> dict[str, str]:
    found = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": _IMPLEMENTATION,
        "modelspec.title": title_of(recipe),
        "modelspec.description": "Made with sdxl-ray",
        "modelspec.trigger_phrase": recipe.data.subject or "",
        "modelspec.resolution": f"{resolution}x{resolution}" if resolution is not None else "",
    }
    return {key: value for key, value in found.items() if value}


def _network_arguments(adapter: Adapter) -> Mapping[str, Any]:
    """kohya's `network_args`: rank and alpha of convolutions, where there are any."""
    convolutions = [pair for pair in adapter.low_rank.values() if pair.down.dim() == 4 and pair.down.shape[-1] > 1]
    if not convolutions:
        return {}
    return {"conv_dim": str(convolutions[0].rank), "conv_alpha": str(float(convolutions[0].alpha))}
