"""An artifact without training: a random LoRA on one layer of the embedded base, in the folder of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import save_file

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.data.dataset import scan
from sdxl_ray.io.artifact import Artifact, write_manifest
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
