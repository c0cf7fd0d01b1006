"""Artifacts without training: a random LoRA on one layer of the embedded base, in the folder of a run, or on many."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import Base
from sdxl_ray.data.dataset import scan
from sdxl_ray.formats.adapter import Adapter, LowRank
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.io.artifact import Artifact, write_manifest
from sdxl_ray.models.base_model_files import component_configs, locate
from sdxl_ray.models.lora_artifact import write_lora_artifact
from sdxl_ray.tiny import shipped

_LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
_INDEX = {"key": str, "source": str, "caption": str, "width": int, "height": int, "role": str}


def random_run(run: Path, recipe: Recipe, *, strength: float = 1.0) -> Artifact:
    """`run/artifact`, and `run/images` that say the recipe's images were all trained on."""
    with safe_open(shipped.BASE / "unet" / "diffusion_pytorch_model.safetensors", "np") as weights:
        wide, high = weights.get_tensor(f"{_LAYER}.weight").shape
    rng = np.random.default_rng(0)
    down, up = rng.normal(size=(2, high)), strength * rng.normal(size=(wide, 2))
    layers = {"lora_A": down, "lora_B": up}
    (run / "artifact").mkdir(parents=True)
    save_file(
        {f"unet.{_LAYER}.{name}.weight": matrix.astype(np.float32) for name, matrix in layers.items()},
        run / "artifact" / "pytorch_lora_weights.safetensors",
        {"format": "pt"},
    )
    (run / "pictures").mkdir()
    schema = pa.schema([(name, pa.int64() if kind is int else pa.string()) for name, kind in _INDEX.items()])
    for name, rows in (("train", scan(recipe.data).index_rows()), ("held_out", []), ("given_class", [])):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), run / "pictures" / f"{name}.parquet")
    return write_manifest(
        run / "artifact",
        kind="lora",
        recipe=recipe.model_dump(mode="json"),
        recipe_identity=recipe.identity,
        base_id="tiny",
        base_revision=shipped.revision(),
        step=7,
    )


#: Layers of every kind that adapters change: attention, a feed-forward, a convolution, both text encoders.
TARGETS = {
    "unet": ("attn1.to_q", "attn2.to_v", "ff.net.2", "resnets.0.conv1"),
    "text_encoder": ("q_proj",),
    "text_encoder_2": ("k_proj", "fc1"),
}


def random_artifact(
    folder: Path, seed: int, *, rank: int = 2, alpha: float = 3, parts: Collection[str] = TARGETS, **changes: Any
) -> Artifact:
    """A LoRA artifact with random factors on `TARGETS`; `changes` are settings of its recorded recipe."""
    files = locate(Base())
    names = LayerNames.of(component_configs(files))
    rng = torch.Generator().manual_seed(seed)
    layers = {}
    for layer, shape in names.shapes.items():
        if layer.part in parts and layer.module.endswith(TARGETS[layer.part]):
            down = torch.randn(rank, *shape[1:], generator=rng) / math.prod(shape[1:]) ** 0.5
            up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=rng) / (4 * rank)
            layers[layer] = LowRank(down, up, float(alpha))
    recipe = override(Recipe(), {"data.subject": "sks dog", **changes})
    return write_lora_artifact(folder, Adapter(layers), names, files, recipe, origin={"command": "test"})
