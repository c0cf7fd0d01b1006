"""The two files that every LoRA leaves: diffusers' own, and kohya's, which all other tools read.

A change that diffusers' format cannot hold (LyCORIS' kinds, DoRA in some layers only) is in kohya's file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Adapter
from sdxl_ray.formats.diffusers_lora import diffusers_tensors
from sdxl_ray.formats.kohya import kohya_tensors
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.peft_metadata import PeftAlphas
from sdxl_ray.formats.reading import read_adapter
from sdxl_ray.formats.tensor_file import CONTENT_HASH, KOHYA_HASH, LEGACY_HASH, write_in_memory
from sdxl_ray.formats.textual_inversion import write_vectors
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, WORDS
from sdxl_ray.io.safetensors_files import read_metadata


def write_lora(
    adapter: Adapter,
    names: LayerNames,
    folder: Path,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
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
        write_in_memory(folder / LORA_WEIGHTS, *diffusers_tensors(adapter, dtype))
    write_kohya(folder / KOHYA_WEIGHTS, kohya_tensors(adapter, names, dtype), metadata)


def write_kohya(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write kohya's file with the hashes of its content in the metadata, where tools look them up."""
    write_in_memory(file, tensors, metadata, (CONTENT_HASH, KOHYA_HASH, LEGACY_HASH))


def holds(adapter: Adapter) -> bool:
    """Whether diffusers' format can hold the adapter."""
    try:
        diffusers_tensors(adapter)
    except UserError:
        return False
    return True


def read_lora(file: Path, names: LayerNames, where: str, alphas: PeftAlphas | None = None) -> tuple[Adapter, list[str]]:
    """The adapter of a file and the names of its unused tensors. Raises UserError as `read_adapter`, or for no file."""
    metadata = read_metadata(file, where)
    return read_adapter(load_file(file), metadata, names, where, alphas)
