"""Writes artifacts in the formats that other tools read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sdxl_ray.config.merging import Merging
from sdxl_ray.config.recipe import Recipe, parse_recorded
from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats.diffusers_lora import diffusers_tensors
from sdxl_ray.formats.kohya import kohya_tensors
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.lora_files import write_kohya
from sdxl_ray.formats.metadata import checkpoint_metadata, lora_metadata
from sdxl_ray.formats.single_file import write_single_file
from sdxl_ray.formats.tensor_file import write_in_memory
from sdxl_ray.io.artifact import MANIFEST, Artifact
from sdxl_ray.io.atomic import whole_folder
from sdxl_ray.io.safetensors_files import read_json
from sdxl_ray.models.base_model import load_components
from sdxl_ray.models.base_model_files import component_configs, locate
from sdxl_ray.models.lora_artifact import read_lora_artifact
from sdxl_ray.models.merge import merge
from sdxl_ray.models.merge_sources import MergeSource, open_merge

_DORA = (
    "note: this LoRA is a DoRA. ComfyUI scales it by the norm of the base's weight instead of the changed one, so its "
    "images differ there: export it merged into the model (--to merged)"
)


@dataclass(frozen=True)
class Export:
    """What is exported. base: of the artifact; dtype None: as it is stored; name: of the file, where none is given."""

    artifact: Artifact
    base: Base
    name: str
    dtype: torch.dtype | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe that the artifact records."""
        return parse_recorded(self.artifact.manifest.recipe, f"{self.artifact.folder}: recipe")

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"artifact {str(self.artifact.folder)!r}"


def export_artifact(what: Export, form: str, out: Path | None) -> tuple[Path, list[str]]:
    """Write the artifact as `form` (a key of FORMATS), whole or not at all; the path and notes about readers.

    out: None for `exported/NAME`, with the format's ending. Raises UserError for a format that the kind of artifact has
    not, and for a LoRA that the format cannot hold; OSError for a full disk.
    """
    kind = what.artifact.manifest.kind
    make = FORMATS[form].get(kind)
    if make is None:
        others = ", ".join(name for name, kinds in FORMATS.items() if kind in kinds)
        is_a = "a LoRA" if kind == "lora" else "a full model"
        raise UserError(f"{what.where} is {is_a}, which has no format {form!r}: use --to {others}")
    target = out or Path("exported") / what.name
    return make(what, target)


def _lora_for_diffusers(what: Export, target: Path) -> tuple[Path, list[str]]:
    file = _file(target)
    write_in_memory(file, *diffusers_tensors(read_lora_artifact(what.artifact, _names(what)), what.dtype))
    return file, []


def _lora_for_kohya(what: Export, target: Path) -> tuple[Path, list[str]]:
    file, names, recipe = _file(target), _names(what), what.recipe
    adapter = read_lora_artifact(what.artifact, names)
    metadata = lora_metadata(adapter, recipe, recipe.data.resolution)
    write_kohya(file, kohya_tensors(adapter, names, what.dtype), metadata)
    return file, [_DORA] if any(pair.magnitude is not None for pair in adapter.low_rank.values()) else []


def _lora_merged(what: Export, target: Path) -> tuple[Path, list[str]]:
    """Into the base's weights: a folder, or one file where the target is called so."""
    source = MergeSource(what.name, what.artifact, 1.0, what.recipe)
    opened = open_merge([source], Merging(into="model"), base=what.base)
    if target.suffix != ".safetensors":
        return merge(opened, target, dtype=what.dtype).artifact.folder, []
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".merging-") as beside:
        merged = merge(opened, Path(beside) / "model", dtype=what.dtype).artifact
        _single_file(merged.folder, target, what)
    return target, []


def _model_as_folder(what: Export, target: Path) -> tuple[Path, list[str]]:
    """The artifact's own folder without what is ours; in another precision, loaded and saved."""
    if target.exists():
        raise UserError(f"--out {str(target)!r} is there already: give another folder, or remove it")
    with whole_folder(target) as draft:
        if what.dtype is None:
            shutil.copytree(what.artifact.folder, draft, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
        else:
            base = Base(id=str(what.artifact.folder))
            load_components(locate(base), base, dtype=what.dtype, device="cpu").save(draft, (), what.dtype)
    return target, []


def _model_as_single_file(what: Export, target: Path) -> tuple[Path, list[str]]:
    file = _file(target)
    _single_file(what.artifact.folder, file, what)
    return file, []


def _single_file(folder: Path, target: Path, what: Export) -> None:
    prediction = read_json(folder / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon")
    metadata = checkpoint_metadata(what.recipe, prediction, what.recipe.data.resolution)
    write_single_file(folder, target, metadata=metadata, dtype=what.dtype)


def _names(what: Export) -> LayerNames:
    return LayerNames.of(component_configs(locate(what.base)))


def _file(target: Path) -> Path:
    """The target as a .safetensors file, in a folder that is there."""
    file = target if target.suffix == ".safetensors" else target.with_name(f"{target.name}.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


Maker = Callable[[Export, Path], tuple[Path, list[str]]]
#: Format -> kind of artifact -> how it is written.
FORMATS: dict[str, dict[str, Maker]] = {
    "diffusers": {"lora": _lora_for_diffusers, "full": _model_as_folder},
    "kohya": {"lora": _lora_for_kohya},
    "comfyui": {"lora": _lora_for_kohya, "full": _model_as_single_file},
    "single-file": {"full": _model_as_single_file},
    "merged": {"lora": _lora_merged},
}
