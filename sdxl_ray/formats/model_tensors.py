"""The tensors of a diffusers folder by part and name, without loading any of them.

Names of text encoders' tensors have `text_model.` whatever the version that wrote the file, as `formats.adapter.Layer`
has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import PARTS, Part
from sdxl_ray.io.safetensors_files import read_header, weights_of


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and what its file's header says of it; dtype: as safetensors names it ("F16")."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        """The tensor, on the CPU."""
        with safe_open(self.file, "pt") as opened:
            tensor: Tensor = opened.get_tensor(self.key)
        return tensor

    @property
    def place(self) -> str:
        """`unet/diffusion_pytorch_model.safetensors`, for messages."""
        return f"{self.file.parent.name}/{self.file.name}"


ModelTensors = Mapping[Part, Mapping[str, StoredTensor]]


def folder_tensors(folder: Path, where: str) -> ModelTensors:
    """UNet and text encoders of a diffusers folder. Raises UserError for a part without whole safetensors weights."""
    return {part: part_tensors(folder / part, f"{where}: {part}") for part in PARTS}


def part_tensors(folder: Path, where: str) -> dict[str, StoredTensor]:
    """The floating-point tensors of one model's folder by name. Raises UserError as `folder_tensors` does."""
    found: dict[str, StoredTensor] = {}
    for file in weights_of(folder, where)[1]:
        for key, entry in read_header(file, where).items():
            if str(entry["dtype"]).startswith(("F", "BF")):  # older text encoders store their position ids too
                name = _with_wrapper(key) if folder.name.startswith("text_encoder") else key
                found[name] = StoredTensor(file, key, tuple(entry["shape"]), str(entry["dtype"]))
    return found


def require_same_shapes(model: ModelTensors, base: ModelTensors, where: str, base_id: str) -> None:
    """Raise UserError unless two models have the same tensors in the same shapes."""
    for part in PARTS:
        mine, its = model[part], base[part]
        different = sorted(mine.keys() ^ its.keys())
        if different:
            name = different[0]
            lacking = f"the base {base_id!r}" if name in mine else where
            raise UserError(
                f"{where} is not of the base's shape: {lacking} has no {name} in its {part} ({len(different)} tensors "
                "differ): give the base that the model was made on"
            )
        for name, tensor in mine.items():
            if tensor.shape != its[name].shape:
                raise UserError(
                    f"{where} is not of the base's shape: {name} of the {part} is {list(tensor.shape)}, in the base "
                    f"{base_id!r} {list(its[name].shape)}: give the base that the model was made on"
                )


def _with_wrapper(key: str) -> str:
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"
