"""A LoRA artifact as an engine keeps it: for each layer a pair of matrices, with the strength already in them.

Only adapters that are plain sums (y = W x + s B A x) can share a batch with others. DoRA, LyCORIS and bias adapters
are refused here; `ServingEngine(fuse=...)` serves them.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor, nn

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import LORA_WEIGHTS, Artifact
from sdxl_ray.models.noise_schedule import scheduler_overrides
from sdxl_ray.models.pipeline import bare_name, require_same_base

_METADATA = "lora_adapter_metadata"
_DOWN, _UP = _HALVES = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class LoraPair:
    """One layer's change: up [out, r, ...] x down [r, in, ...]; alpha / r is already multiplied into `up`."""

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Columns that the pair takes."""
        return self.down.shape[0]


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """A loaded adapter. parts: "unet", "text_encoder", "text_encoder_2" -> full layer name -> Pair.

    gone: set when it was evicted, after the last image that used it; who still holds it lets go.
    """

    name: str
    hash: str
    parts: Mapping[str, Mapping[str, LoraPair]]
    overrides: Mapping[str, Any]
    load_ms: float
    evicted: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class AdapterStrength:
    """How strongly an image uses an adapter, per block group of the UNet."""

    adapter: LoadedAdapter
    scale: float
    down: float = 1.0
    mid: float = 1.0
    up: float = 1.0

    def of(self, group: str) -> float:
        """Factor for layers of "down", "mid", "up", or "" (outside them, and in text encoders)."""
        return self.scale * (float(getattr(self, group)) if group else 1.0)


def layer_names(artifact: Artifact, part: str) -> set[str]:
    """The layers of `part` that an artifact changes, from the file's header alone."""
    with _opened(artifact) as file:
        keys = [key for key in file.keys() if key.startswith(f"{part}.") and key.endswith(_DOWN)]  # noqa: SIM118
    return {key.removeprefix(f"{part}.").removesuffix(_DOWN) for key in keys}


@dataclass(frozen=True)
class LayerPlaces:
    """The layers that adapters may change, by part and version-independent name: full name and weight shape."""

    layers: Mapping[str, Mapping[str, tuple[str, torch.Size]]]

    @classmethod
    def of(cls, models: Mapping[str, nn.Module]) -> LayerPlaces:
        """Read before any layer is wrapped."""
        return cls(
            {
                part: {
                    bare_name(f"{part}.{path}"): (path, module.weight.shape)
                    for path, module in model.named_modules()
                    if isinstance(module, nn.Linear | nn.Conv2d)
                }
                for part, model in models.items()
            }
        )


def load_adapter(
    name: str, artifact: Artifact, base: Base, places: LayerPlaces, dtype: torch.dtype, device: torch.device
) -> LoadedAdapter:
    """Read, verify and place an adapter.

    Raises UserError naming the artifact: its files changed since it was opened, it is of
    another base or kind, its weights fit no layer, are not finite, or cannot be mixed.
    """
    start = time.monotonic()
    where = f"adapter {name!r} ({artifact.folder})"
    if Artifact.open(artifact.folder).hash != artifact.hash:
        raise UserError(f"{where} was replaced by another artifact since it was registered: add it again")
    require_mixable(name, artifact, base)
    parts: dict[str, dict[str, LoraPair]] = {part: {} for part in places.layers}
    with _opened(artifact) as file:
        metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    # Not by `get_tensor`: safetensors 0.8 loses 56 bytes of every tensor for good, and adapters come and go for weeks.
    tensors = load((artifact.folder / LORA_WEIGHTS).read_bytes())
    for head, down, up in _pairs(where, tensors):
        part, _, layer = head.partition(".")
        path, shape = places.layers.get(part, {}).get(bare_name(head), ("", torch.Size()))
        if not path:
            raise UserError(f"{where}: {head} is no linear or convolution layer of the base")
        fits = (*up.shape[:1], *down.shape[1:]) == tuple(shape) and down.shape[0] == up.shape[1]
        if not fits:
            raise UserError(f"{where}: {head} has {list(up.shape)} x {list(down.shape)}, the layer {list(shape)}")
        if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
            # Rows that do not use an adapter multiply it by 0, which only finite numbers survive.
            raise UserError(f"{where}: {head} holds NaN or infinity")
        factor = _factor(metadata, part, layer, down.shape[0], tensors.get(f"{head}.alpha"))
        # Multiplied in fp32: bf16 would round twice.
        parts[part][path] = LoraPair(down.to(device, dtype), (up.float() * factor).to(device, dtype))
    overrides = scheduler_overrides(artifact.manifest.recipe.get("objective", {}))
    return LoadedAdapter(name, artifact.hash, parts, overrides, (time.monotonic() - start) * 1e3)


def require_mixable(name: str, artifact: Artifact, base: Base) -> None:
    """Raise UserError for an artifact that is no LoRA of this base, or one whose pattern cannot share a batch."""
    where = f"adapter {name!r} ({artifact.folder})"
    if artifact.manifest.kind != "lora":
        raise UserError(f"{where} is a {artifact.manifest.kind} artifact, not a LoRA: serve it as a variant of its own")
    require_same_base(base, artifact)
    if artifact.word_files:
        raise UserError(
            f"{where} brings words of its own ({', '.join(artifact.word_files)}), which all images of a batch would "
            "have: fuse it into a variant of its own (fused: true, own_replicas: true)"
        )
    if artifact.in_kohya_alone:
        raise UserError(
            f"{where} holds what diffusers' LoRA format cannot (LyCORIS, DoRA in some layers), which cannot share a "
            "batch: fuse it into a variant of its own (fused: true, own_replicas: true)"
        )
    with _opened(artifact) as file:
        for key in file.keys():  # noqa: SIM118
            if "lora_magnitude_vector" in key:
                raise UserError(f"{where} is a DoRA, which cannot share a batch: fuse it into a variant of its own")
            if not key.endswith((*_HALVES, ".alpha")):
                raise UserError(f"{where}: {key} is no low-rank pair, so it cannot share a batch: fuse it")


def _opened(artifact: Artifact) -> Any:
    file = Path(artifact.folder) / LORA_WEIGHTS
    try:
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"artifact {str(artifact.folder)!r}: {LORA_WEIGHTS} cannot be read: {error}") from None


def _pairs(where: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    heads = {key.removesuffix(tail) for key in tensors for tail in _HALVES if key.endswith(tail)}
    for head in sorted(heads):
        down, up = tensors.get(f"{head}{_DOWN}"), tensors.get(f"{head}{_UP}")
        if down is None or up is None:
            raise UserError(f"{where}: {head} has one matrix of two")
        yield head, down, up


def _factor(metadata: Mapping[str, Any], part: str, layer: str, rank: int, stored: Tensor | None) -> float:
    """alpha / rank (rank-stabilised: alpha / sqrt(rank)) as PEFT finds it; without any word of alpha, 1."""
    patterns = metadata.get(f"{part}.alpha_pattern") or {}
    alpha = float(metadata.get(f"{part}.lora_alpha", rank if stored is None else stored.item()))
    alpha = float(patterns.get(get_pattern_key(patterns.keys(), layer), alpha))
    return alpha / (math.sqrt(rank) if metadata.get(f"{part}.use_rslora") else rank)
