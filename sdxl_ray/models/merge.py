"""LoRA artifacts become one: a LoRA, or a whole model.

sources = [open_source(*parse_source(text)) for text in ("runs/dog/artifact=0.8", "runs/cat/artifact=0.6")]
merge(open_merge(sources, Merging(method="ties")), Path("merged"))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import PARTS, Adapter, Layer, LowRank
from sdxl_ray.formats.merging import Merged, dora_weight, merged_delta, merged_pair, residual
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.rows import OnRow
from sdxl_ray.models.base_model import load_components
from sdxl_ray.models.full_artifact import modules_of, stored_dtype, write_full_artifact
from sdxl_ray.models.lora_artifact import write_lora_artifact
from sdxl_ray.models.merge_sources import OpenedMerge
from sdxl_ray.models.noise_schedule import scheduler_overrides


@dataclass(frozen=True)
class MergeResult:
    """residual: relative Frobenius norm of what the ranks leave out, over all layers; 0 is exact."""

    artifact: Artifact
    layers: int
    ranks: tuple[int, int] | None = None
    residual: float = 0.0


def merge(
    opened: OpenedMerge, out: Path, *, dtype: torch.dtype | None = None, on_row: OnRow = lambda row: None
) -> MergeResult:
    """Write the artifact `out`, whole or not at all.

    dtype: of its files; None: fp32 for a LoRA, the base's own for a model. Raises UserError for what that cannot hold,
    OSError or SafetensorError when the disk is full.
    """
    make = _into_model if opened.merging.into == "model" else _into_lora
    return make(opened, out, dtype, on_row)


def _into_lora(opened: OpenedMerge, out: Path, dtype: torch.dtype | None, on_row: OnRow) -> MergeResult:
    """Layer by layer in fp32."""
    merged: dict[Layer, Merged] = {}
    layers = opened.layers
    for number, layer in enumerate(layers):
        on_row({"kind": "phase", "name": "merging", "done": number, "total": len(layers)})
        merged[layer] = _strengthened(
            merged_pair(layer, opened.changes(layer), opened.merging), opened.blocks.of(layer, opened.names)
        )
        _require_held(merged[layer].pair.up, layer, dtype or torch.float32)
        _require_held(merged[layer].pair.down, layer, dtype or torch.float32)
    ranks = sorted(one.pair.rank for one in merged.values())
    left_out = residual(list(merged.values()))
    origin = {**opened.origin, "residual": left_out}
    adapter = Adapter({layer: one.pair for layer, one in merged.items()})
    artifact = write_lora_artifact(out, adapter, opened.names, opened.files, opened.recipe, origin=origin, dtype=dtype)
    return MergeResult(artifact, len(merged), (ranks[0], ranks[-1]), left_out)


def _into_model(opened: OpenedMerge, out: Path, dtype: torch.dtype | None, on_row: OnRow) -> MergeResult:
    """The base's weights with the change added in fp32."""
    on_row({"kind": "phase", "name": f"loading the base {opened.recipe.base.id}"})
    stored = stored_dtype(opened.files)
    dtype = dtype or stored
    # In the stored dtype where that is the result's too: half of the memory, and one rounding either way.
    loaded = dtype if dtype == stored else torch.float32
    components = load_components(opened.files, opened.recipe.base, dtype=loaded, device="cpu")
    changes = scheduler_overrides(opened.recipe.objective.model_dump(mode="json"))
    components.scheduler = type(components.scheduler).from_config({**components.scheduler.config, **changes})
    modules, layers = modules_of(components), opened.layers
    for number, layer in enumerate(layers):
        on_row({"kind": "phase", "name": "merging", "done": number, "total": len(layers)})
        weight: torch.Tensor = modules[layer].weight  # type: ignore[assignment]
        _change(weight, layer, opened)
        _require_held(weight, layer, dtype)
    parts = tuple(part for part in PARTS if any(layer.part == part for layer in layers))
    on_row({"kind": "phase", "name": "writing the model"})
    artifact = write_full_artifact(out, components, opened.recipe, parts, origin=opened.origin, dtype=dtype)
    return MergeResult(artifact, len(layers))


@torch.no_grad()
def _change(weight: torch.Tensor, layer: Layer, opened: OpenedMerge) -> None:
    strength, changes = opened.blocks.of(layer, opened.names), opened.changes(layer)
    pair, factor = changes[0]
    if pair.magnitude is not None:
        weight.copy_(dora_weight(weight, pair, factor * strength))
    else:
        weight.copy_(weight.float() + strength * merged_delta(layer, changes, opened.merging))


def _require_held(numbers: torch.Tensor, layer: Layer, dtype: torch.dtype) -> None:
    """Raise UserError for a result that is too large for `dtype`."""
    if not bool(torch.isfinite(numbers.to(dtype)).all()):
        name = str(dtype).removeprefix("torch.")
        raise UserError(f"the merge of {layer.part} {layer.module} is too large for {name}: give smaller weights")


def _strengthened(merged: Merged, strength: float) -> Merged:
    pair = LowRank(merged.pair.down, merged.pair.up * strength, merged.pair.alpha)
    return Merged(pair, merged.change * strength**2, merged.lost * strength**2)
