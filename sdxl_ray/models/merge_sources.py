"""What a merge is made of: LoRA artifacts with weights, found to fit together before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdxl_ray.config.merging import SUMS, Merging
from sdxl_ray.config.recipe import Recipe, parse_recorded
from sdxl_ray.config.schema import Base, Data
from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import PARTS, Adapter, Layer
from sdxl_ray.formats.block_strengths import BlockStrengths
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.merging import Weighted
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, Artifact
from sdxl_ray.models.base_model_files import BaseFiles, component_configs, locate
from sdxl_ray.models.lora_artifact import read_lora_artifact
from sdxl_ray.models.noise_schedule import scheduler_overrides
from sdxl_ray.models.opening import name_of, open_artifact
from sdxl_ray.models.pipeline import require_same_base


@dataclass(frozen=True)
class MergeSource:
    """A LoRA and its weight. name: what the result's origin calls it."""

    name: str
    artifact: Artifact
    weight: float
    recipe: Recipe

    @property
    def where(self) -> str:
        """What messages call it."""
        return repr(str(self.artifact.folder))

    @property
    def weights_hash(self) -> str:
        """SHA-256 of its weights alone: the same adapter may lie in artifacts of different dates."""
        files = self.artifact.manifest.files
        return files.get(LORA_WEIGHTS) or files.get(KOHYA_WEIGHTS) or self.artifact.hash


@dataclass(frozen=True)
class OpenedMerge:
    """Sources that fit together. adapters: theirs, in their order; files: of the base that all were made on."""

    sources: Sequence[MergeSource]
    adapters: Sequence[Adapter]
    merging: Merging
    blocks: BlockStrengths
    recipe: Recipe
    files: BaseFiles
    names: LayerNames

    @property
    def layers(self) -> list[Layer]:
        """Every layer that is changed: first the UNet's, in the order of the sources."""
        found = dict.fromkeys(layer for adapter in self.adapters for layer in adapter.layers)
        kept = [layer for layer in found if self.blocks.of(layer, self.names) != 0]
        return sorted(kept, key=lambda layer: PARTS.index(layer.part))

    def changes(self, layer: Layer) -> list[Weighted]:
        """Of the sources that change the layer."""
        both = zip(self.sources, self.adapters, strict=True)
        pairs = ((source.weight, adapter.low_rank.get(layer)) for source, adapter in both)
        return [Weighted(pair, weight) for weight, pair in pairs if pair is not None]

    @property
    def origin(self) -> dict[str, Any]:
        """What the result was made from, for its manifest."""
        known: dict[str, Any] = {"command": "merge", **self.merging.origin}
        known["sources"] = [
            {"name": s.name, "weight": s.weight, "hash": s.artifact.hash, "subject": s.recipe.data.subject}
            for s in self.sources
        ]
        return known


def open_source(path: str | Path, weight: float = 1.0, base: Base | None = None) -> MergeSource:
    """Open and verify one source, or import another tool's file. Raises UserError as `open_artifact` and for models."""
    artifact = open_artifact(path, base)
    if artifact.manifest.kind != "lora":
        raise UserError(
            f"{str(path)!r} is a full model, and merge takes LoRAs: `sdxl-ray extract` makes a LoRA of what it changed"
        )
    recipe = parse_recorded(artifact.manifest.recipe, f"{artifact.folder}: recipe")
    return MergeSource(name_of(path), artifact, weight, recipe)


def open_merge(
    sources: Sequence[MergeSource],
    merging: Merging,
    *,
    base: Base | None = None,
) -> OpenedMerge:
    """Read the adapters and check that they can become one.

    base: default, the one that the first source's recipe names. Raises UserError: no source, the same adapter twice,
    other bases or predictions, LyCORIS kinds, DoRA (which goes into a model alone), blocks that have no layer.
    """
    if not sources:
        raise UserError(
            "nothing to merge: give LoRA artifacts, for example runs/dog/artifact=0.8 runs/cat/artifact=0.6"
        )
    _require_different(sources)
    _require_one_base(sources)
    _require_one_prediction(sources)
    recipe = merged_recipe([source.recipe for source in sources], base or sources[0].recipe.base)
    files = locate(recipe.base)
    for source in sources:
        require_same_base(recipe.base, source.artifact)
    names = LayerNames.of(component_configs(files))
    adapters = [read_lora_artifact(source.artifact, names) for source in sources]
    _require_mergeable(sources, adapters, merging)
    blocks = BlockStrengths(merging.blocks)
    blocks.require_known((layer for adapter in adapters for layer in adapter.layers), names)
    opened = OpenedMerge(sources, adapters, merging, blocks, recipe, files, names)
    if not opened.layers:
        raise UserError("blocks leave no layer: give one of them a strength other than 0")
    if merging.rank is not None:
        _require_rank(merging.rank, opened)
    return opened


def require_new(out: Path, sources: Sequence[MergeSource]) -> None:
    """Raise UserError where a result would replace something, or lie inside one of its sources."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {str(out)!r} is there already: give another folder, or remove it")
    for source in sources:
        if source.artifact.folder.resolve() in out.resolve().parents:
            raise UserError(f"--out {str(out)!r} is inside {str(source.artifact.folder)!r}: give a folder of its own")


def merged_recipe(recipes: Sequence[Recipe], base: Base) -> Recipe:
    """What is known of a merge: the base, the prediction, and the words of the first source's subject."""
    first = recipes[0]
    length = max(recipe.data.max_token_length for recipe in recipes)
    data = Data(subject=first.data.subject, class_name=first.data.class_name, max_token_length=length)
    plain = Recipe().model_dump(mode="json") | {
        "base": base.model_dump(mode="json"),
        "data": data.model_dump(mode="json"),
        "objective": first.objective.model_dump(mode="json"),
        "evaluation": first.evaluation.model_dump(mode="json"),
    }
    return parse_recorded(plain, "the recipe of the merge")


def _require_different(sources: Sequence[MergeSource]) -> None:
    seen: dict[str, MergeSource] = {}
    for source in sources:
        before = seen.setdefault(source.weights_hash, source)
        if before is not source:
            raise UserError(
                f"{before.where} and {source.where} are the same adapter: give it "
                f"once, with the weight {before.weight + source.weight:g}"
            )


def _require_one_base(sources: Sequence[MergeSource]) -> None:
    first = sources[0]
    for source in sources:
        one, other = first.artifact.manifest.base, source.artifact.manifest.base
        if one.revision != other.revision:
            raise UserError(
                f"{first.where} was made on base {one.id!r} at {one.revision[:12]}, {source.where} on {other.id!r} "
                f"at {other.revision[:12]}: merge adapters of one base"
            )


def _require_one_prediction(sources: Sequence[MergeSource]) -> None:
    first = sources[0]
    for source in sources:
        one, other = (scheduler_overrides(s.recipe.objective.model_dump(mode="json")) for s in (first, source))
        if one != other:
            raise UserError(
                f"{first.where} was trained with objective {_said(one)}, {source.where} with {_said(other)}: their "
                "sum predicts neither, merge adapters of one objective"
            )


def _said(overrides: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in overrides.items()) or "of the base"


def _require_mergeable(sources: Sequence[MergeSource], adapters: Sequence[Adapter], merging: Merging) -> None:
    for source, adapter in zip(sources, adapters, strict=True):
        if adapter.lycoris:
            layer, change = next(iter(adapter.lycoris.items()))
            raise UserError(
                f"{source.where} holds {change.kind} in {len(adapter.lycoris)} layers, as {layer.module}: merge takes "
                "low-rank pairs only, leave it out"
            )
        dora = any(pair.magnitude is not None for pair in adapter.low_rank.values())
        if dora and (len(sources) > 1 or merging.into == "lora" or merging.method not in SUMS):
            raise UserError(
                f"{source.where} is a DoRA, whose change depends on the weights below it and does not add up with "
                "others: merge it alone, into a model (--into model)"
            )


def _require_rank(rank: int, opened: OpenedMerge) -> None:
    shapes = (opened.names.shapes[layer] for layer in opened.layers)
    largest = max(min(shape[0], math.prod(shape[1:])) for shape in shapes)
    if rank > largest:
        raise UserError(f"rank {rank}: the layers of these adapters have rank {largest} at most")
