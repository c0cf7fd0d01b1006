"""LoRAs of many ranks from one full model: one pass over its layers, an artifact a rank.

    model = FullModel.open("runs/dog/artifact")
    found = extract(model, rank_rules("4,8,16"), Path("extracted"))

Each layer is read, decomposed once (`formats.extraction`) and forgotten: memory holds one layer, and the factors of the
ranks that are still to be written. What a LoRA cannot hold is counted by kind, with its share of the difference.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import PARTS, Adapter, Layer, LowRank, Part
from sdxl_ray.formats.extraction import Decomposition, RankRule, decompose
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.model_tensors import ModelTensors
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, MANIFEST, Artifact
from sdxl_ray.io.records import Recorder, read
from sdxl_ray.io.rows import OnRow, Row
from sdxl_ray.io.safetensors_files import read_json
from sdxl_ray.models.base_model_files import component_configs
from sdxl_ray.models.full_model import FullModel
from sdxl_ray.models.lora_artifact import write_lora_artifact
from sdxl_ray.models.weight_loading import require_finite

#: The row of all parts together.
ALL = "all"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class ExtractionResult:
    """artifacts: by rule's name. rows, lost: of the tables `extractions` and `not_extracted`, those asked for."""

    artifacts: Mapping[str, Artifact]
    rows: list[Row]
    lost: list[Row]


@dataclass
class _Sums:
    """What one rule leaves of one part."""

    ranks: list[int] = field(default_factory=list)
    parameters: int = 0
    squared: float = 0.0
    predicted: float = 0.0
    residual: float = 0.0


def extract(
    model: FullModel,
    rules: Sequence[RankRule],
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    on_row: OnRow = lambda _: None,
) -> ExtractionResult:
    """Write `out/<rule>/` for each rule, and records; a LoRA that is there and whole is not made again.

    dtype: of the files; None: the model's UNet's own (fp32 where it is neither fp16 nor bf16). Raises UserError before
    anything is written: a rank above every layer's, models of different shapes or no difference, weights that are no
    numbers, a folder in the way.
    """
    mine, its = model.tensors()
    names = LayerNames.of(component_configs(model.files))
    _require_possible(rules, names)
    dtype = dtype or _DTYPES.get(next(iter(mine["unet"].values())).dtype, torch.float32)
    origins = {rule.name: _origin(model, rule, dtype) for rule in rules}
    _require_writable(out)
    recorded = _recorded(out)
    missing = [
        rule
        for rule in rules
        if not _is_whole(out / rule.name, origins[rule.name], model) or rule.name not in {r["name"] for r in recorded}
    ]
    if missing:
        if model.has_other_vae():
            on_row({"kind": "note", "text": "note: the model's VAE is not the base's; a LoRA holds none: set base.vae"})
        passed = _Pass(names, missing, dtype)
        passed.over(mine, its, model.where, on_row)
        _write(passed, names, model, out, origins, on_row)
    wanted = [rule.name for rule in rules]
    rows = [row for name in wanted for row in _recorded(out) if row["name"] == name]
    lost = read(out / "records", "not_extracted").to_pylist()
    return ExtractionResult({name: Artifact.open(out / name) for name in wanted}, rows, lost)


class _Pass:
    """One pass over the layers of two models; afterwards, pairs and sums by rule, rows of what differs and is lost."""

    def __init__(self, names: LayerNames, rules: Sequence[RankRule], dtype: torch.dtype) -> None:
        self._names, self.rules, self.dtype = names, rules, dtype
        self.pairs: dict[str, dict[Layer, LowRank]] = {rule.name: {} for rule in rules}
        self.sums: dict[str, dict[Part, _Sums]] = {rule.name: {} for rule in rules}
        self.layers: list[Row] = []
        self._lost: dict[str, list[float]] = {}
        self._embeddings: list[float] = []

    def over(self, mine: ModelTensors, its: ModelTensors, where: str, on_row: OnRow) -> None:
        """Raises UserError for weights that are not finite, and where no layer differs."""
        named = [(part, name) for part in PARTS for name in mine[part]]
        for done, (part, name) in enumerate(named):
            on_row({"kind": "phase", "name": "extracting", "done": done, "total": len(named)})
            stored = mine[part][name], its[part][name]
            tuned, base = (tensor.read() for tensor in stored)
            for tensor, at in zip((tuned, base), stored, strict=True):
                require_finite([(name, tensor)], where if tensor is tuned else "the base", [at.file])
            self._take(part, name, tuned, base)
        on_row({"kind": "phase", "name": "extracting", "done": len(named), "total": len(named)})
        if not self.layers:
            raise UserError(f"{where}: no layer that a LoRA can hold differs from the base's")

    def _take(self, part: Part, name: str, tuned: Tensor, base: Tensor) -> None:
        layer = Layer(part, name.removesuffix(".weight"))
        kind = _kind(name, layer, self._names)
        if bool((tuned == base.to(tuned.dtype)).all()):
            # In another dtype than the base's, what was not trained differs by its rounding.
            exact = tuned.dtype == base.dtype or bool((tuned.double() == base.double()).all())
            self._lost.setdefault("unchanged" if exact else "rounded", []).append(
                0.0 if exact else float((tuned.double() - base.double()).square().sum())
            )
        elif kind:
            self._lost.setdefault(kind, []).append(float((tuned.double() - base.double()).square().sum()))
        else:
            self._extract(layer, decompose(tuned, base))

    def _extract(self, layer: Layer, parts: Decomposition) -> None:
        squares, rows, columns = parts.singular.square(), *parts.difference.shape
        squared = float(squares.sum())
        self.layers.append(
            {"part": layer.part, "module": layer.module, "rows": rows, "columns": columns, "squared": squared,
             "singular": parts.singular.tolist()}
        )  # fmt: skip
        if layer in self._names.embeddings:
            self._embeddings.append(squared)
        for rule in self.rules:
            pair = parts.pair(rule.of(parts.singular), self.dtype)
            self.pairs[rule.name][layer] = pair
            sums = self.sums[rule.name].setdefault(layer.part, _Sums())
            sums.ranks.append(pair.rank)
            sums.parameters += pair.down.numel() + pair.up.numel()
            sums.squared += squared
            sums.predicted += float(squares[pair.rank :].sum())
            sums.residual += parts.residual(pair)

    def lost(self) -> list[Row]:
        """Rows of the table `not_extracted`."""
        held = [row["squared"] for row in self.layers]
        everything = math.fsum([*held, *(squared for some in self._lost.values() for squared in some)])
        kinds = self._lost | ({"embeddings": self._embeddings} if self._embeddings else {})
        return [
            {"kind": kind, "tensors": len(some), "squared": math.fsum(some), "share": math.fsum(some) / everything}
            for kind, some in sorted(kinds.items())
        ]


def _write(
    passed: _Pass,
    names: LayerNames,
    model: FullModel,
    out: Path,
    origins: Mapping[str, Mapping[str, Any]],
    on_row: OnRow,
) -> None:
    lost = passed.lost()
    _keep_index(model, out)
    with Recorder(out / "records") as recorder:
        for table, some in (("extracted_layers", passed.layers), ("not_extracted", lost)):
            recorder.forget(table)
            for row in some:
                recorder.write(table, row)
    for done, rule in enumerate(passed.rules):
        on_row({"kind": "phase", "name": "writing", "done": done, "total": len(passed.rules)})
        rows = _rows(rule, passed.sums[rule.name], passed.dtype)
        known = {
            "residual": rows[-1]["residual"],
            "not held": math.fsum(row["share"] for row in lost if row["kind"] != "embeddings"),
        }
        adapter = Adapter(passed.pairs.pop(rule.name))
        artifact = write_lora_artifact(
            out / rule.name, adapter, names, model.files, model.recipe, origin={**origins[rule.name], **known}
        )
        there = {kind: artifact.folder / file for kind, file in _FILES.items()}
        sizes = {kind: file.stat().st_size if file.is_file() else None for kind, file in there.items()}
        rows[-1] |= {**sizes, "artifact": artifact.hash}
        with Recorder(out / "records") as recorder:
            for row in rows:
                recorder.write("extractions", row)


_FILES = {"diffusers_bytes": LORA_WEIGHTS, "kohya_bytes": KOHYA_WEIGHTS}


def _rows(rule: RankRule, sums: Mapping[Part, _Sums], dtype: torch.dtype) -> list[Row]:
    """Of each part that differs, and of all."""
    each = [(part, sums[part]) for part in PARTS if part in sums]
    everything = _Sums(
        [rank for _, part in each for rank in part.ranks],
        *(sum(getattr(part, name) for _, part in each) for name in ("parameters", "squared", "predicted", "residual")),
    )
    return [
        {
            "name": rule.name,
            "part": part,
            "rank": rule.rank,
            "energy": rule.energy,
            "lowest_rank": min(one.ranks),
            "highest_rank": max(one.ranks),
            "layers": len(one.ranks),
            "parameters": one.parameters,
            "squared": one.squared,
            "predicted": math.sqrt(one.predicted / one.squared),
            "residual": math.sqrt(one.residual / one.squared),
            "dtype": str(dtype).removeprefix("torch."),
        }
        for part, one in [*each, (ALL, everything)]
    ]


def _kind(name: str, layer: Layer, names: LayerNames) -> str:
    """Why a LoRA cannot hold a tensor: "biases", "norms" or "others"; "" for one that it can."""
    if name.endswith(".bias"):
        return "biases"
    if layer in names.embeddings:
        return ""
    dimensions = len(names.shapes.get(layer, ()))
    return "" if dimensions in (2, 4) else "norms" if dimensions == 1 else "others"


def _require_possible(rules: Sequence[RankRule], names: LayerNames) -> None:
    sides = [min(shape[0], math.prod(shape[1:])) for shape in names.shapes.values() if len(shape) in (2, 4)]
    for rule in rules:
        if rule.rank is not None and rule.rank > max(sides):
            raise UserError(
                f"rank {rule.rank} is above every layer's: the largest matrix of this model has rank {max(sides)}; "
                f"give at most {max(sides)}, or full"
            )


def _require_writable(out: Path) -> None:
    """Raise UserError for a folder that cannot be made: better now than after the pass."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError(f"{str(out)!r} cannot be written: {str(nearest)!r} is no folder of yours; give another --out")


def _origin(model: FullModel, rule: RankRule, dtype: torch.dtype) -> dict[str, Any]:
    kept: dict[str, Any] = {"energy": rule.energy} if rule.energy is not None else {"rank": rule.rank or "full"}
    stored = str(dtype).removeprefix("torch.")
    return {"command": "extract", "source": model.hash, **kept, "dtype": stored}


def _recorded(out: Path) -> list[Row]:
    rows: list[Row] = read(out / "records", "extractions").to_pylist() if (out / "records").is_dir() else []
    return sorted(rows, key=lambda row: (*PARTS, ALL).index(row["part"]))


def _is_whole(folder: Path, origin: Mapping[str, Any], model: FullModel) -> bool:
    """Whether this very LoRA is there. Raises UserError for a folder that is something else."""
    if not folder.exists():
        return False
    known = _known_origin(folder)
    if known.get("command") != "extract":
        raise UserError(f"{str(folder)!r} is there and is no extraction: give another --out")
    different = [name for name, value in origin.items() if known.get(name) != value]
    if different:
        raise UserError(
            f"{str(folder)!r} is an extraction with {different[0]} {known.get(different[0])!r}, now it is "
            f"{origin[different[0]]!r}: give another --out"
        )
    try:
        return Artifact.open(folder).manifest.base.revision == model.files.revision
    except UserError:  # altered or cut off
        return False


def _known_origin(folder: Path) -> Mapping[str, Any]:
    try:
        origin = read_json(folder / MANIFEST).get("origin")
    except UserError:
        return {}
    return origin if isinstance(origin, dict) else {}


def _keep_index(model: FullModel, out: Path) -> None:
    """Beside the LoRAs, what the run was trained on: they are not to be scored by photos that the model has seen."""
    out.mkdir(parents=True, exist_ok=True)
    index = model.folder.absolute().parent / "pictures"
    if model.artifact is None or not (index / "train.parquet").is_file():
        return
    (out / "pictures").mkdir(exist_ok=True)
    for file in index.glob("*.parquet"):
        shutil.copyfile(file, out / "pictures" / file.name)
