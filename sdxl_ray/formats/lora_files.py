"""The two files that every LoRA leaves: diffusers' own, and kohya's, which all other tools read.

A change that diffusers' format cannot hold (LyCORIS' kinds, DoRA in some layers only) is in kohya's file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Adapter
from sdxl_ray.formats.diffusers_lora import diffusers_tensors
from sdxl_ray.formats.kohya import kohya_tensors
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.peft_metadata import PeftAlphas
from sdxl_ray.formats.reading import read_adapter
from sdxl_ray.formats.textual_inversion import write_vectors
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, WORDS
from sdxl_ray.io.safetensors_files import order_metadata, read_header


def write_lora(
    adapter: Adapter,
    names: LayerNames,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `pytorch_lora_weights.safetensors`, where the format can hold the adapter, and `kohya_lora.safetensors`.

    Words are in `embeddings/WORD.safetensors` and in kohya's file; an adapter of words alone has no other file.
    metadata: of kohya's file. dtype None: as the tensors are. Raises OSError when the disk is full.
    """
    for word, vectors in adapter.words.items():
        (folder / WORDS).mkdir(exist_ok=True)
        write_vectors(vectors, folder / WORDS / f"{word}.safetensors", dtype)
    if not adapter.layers and adapter.words:
        return
    if holds(adapter):
        _write(folder / LORA_WEIGHTS, *diffusers_tensors(adapter, dtype))
    _write(folder / KOHYA_WEIGHTS, kohya_tensors(adapter, names, dtype), dict(metadata or {}))


def holds(adapter: Adapter) -> bool:
    """Whether diffusers' format can hold the adapter."""
    try:
        diffusers_tensors(adapter)
    except UserError:
        return False
    return True


def read_lora(file: Path, names: LayerNames, where: str, alphas: PeftAlphas | None = None) -> tuple[Adapter, list[str]]:
    """The adapter of a file and the names of its unused tensors. Raises UserError as `read_adapter`, or for no file."""
    read_header(file, where)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    return read_adapter(load_file(file), metadata, names, where, alphas)


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    save_file(dict(tensors), file, dict(metadata) or None)
    if metadata:
        order_metadata(file)
