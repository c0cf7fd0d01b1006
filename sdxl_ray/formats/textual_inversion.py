"""Textual inversion (arXiv 2208.01618): learned vectors that stand for a word, for each of SDXL's two text encoders.

A file holds `clip_l` [n, C1] and `clip_g` [n, C2], as ComfyUI, A1111, OneTrainer and diffusers' scripts write them; in
a LoRA's file they are `bundle_emb.<word>.clip_l` and `bundle_emb.<word>.clip_g`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import WordVectors
from sdxl_ray.formats.tensor_file import write_in_memory
from sdxl_ray.io.safetensors_files import read_header

_NAMES = ("clip_l", "clip_g")
_BUNDLED = "bundle_emb."
_MOST_VECTORS = 75


def read_vectors(file: Path, widths: tuple[int, int], where: str) -> WordVectors:
    """The vectors of a file. widths: of the base's two encoders.

    Raises UserError: no safetensors file, vectors for one encoder only, or for encoders of other widths.
    """
    read_header(file, where)
    return _vectors(load_file(file), widths, where)


def write_vectors(vectors: WordVectors, file: Path, dtype: torch.dtype | None = None) -> None:
    """Write a file. dtype None: as they are. Raises OSError."""
    write_in_memory(file, _named(vectors, dtype), {})


def bundled_tensors(words: Mapping[str, WordVectors], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of words inside a LoRA's file."""
    return {
        f"{_BUNDLED}{word}.{name}": tensor
        for word, vectors in words.items()
        for name, tensor in _named(vectors, dtype).items()
    }


def split_bundled(
    tensors: Mapping[str, Tensor], widths: tuple[int, int], where: str
) -> tuple[dict[str, WordVectors], dict[str, Tensor]]:
    """The words inside a LoRA's file, and its other tensors. Raises UserError as `read_vectors`, and for a bad word."""
    found: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        word, _, encoder = name.removeprefix(_BUNDLED).rpartition(".")
        if name.startswith(_BUNDLED) and word:
            found.setdefault(word, {})[encoder] = tensor
        else:
            rest[name] = tensor
    words = {}
    for word, named in found.items():
        require_word(word, where)
        words[word] = _vectors(named, widths, f"{where}: word {word!r}")
    return words, rest


def require_word(word: str, where: str) -> None:
    """Raise UserError for what cannot be a word of a prompt and the name of a file."""
    if not word or any(sign in "/\\\0" or sign.isspace() for sign in word) or word.startswith("."):
        raise UserError(f"{where}: {word!r} cannot be a word of prompts: give one without spaces, / and \\, as <dog>")


def _named(vectors: WordVectors, dtype: torch.dtype | None) -> dict[str, Tensor]:
    both = zip(_NAMES, (vectors.clip_l, vectors.clip_g), strict=True)
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in both}


def _vectors(tensors: Mapping[str, Tensor], widths: tuple[int, int], where: str) -> WordVectors:
    if "emb_params" in tensors or (len(tensors) == 1 and not tensors.keys() & set(_NAMES)):
        raise UserError(
            f"{where} has vectors for one text encoder ({next(iter(tensors))}), as textual inversions of SD 1.x and "
            "2.x have: SDXL needs clip_l and clip_g, give one that was trained on SDXL"
        )
    strangers = sorted(tensors.keys() - set(_NAMES))
    missing = [name for name in _NAMES if name not in tensors]
    if missing or strangers:
        fault = f"lacks {missing[0]}" if missing else f"also has {strangers[0]}"
        raise UserError(f"{where} {fault}: a textual inversion of SDXL holds clip_l and clip_g alone")
    both = [torch.atleast_2d(tensors[name]) for name in _NAMES]
    for name, one, width in zip(_NAMES, both, widths, strict=True):
        if one.dim() != 2 or one.shape[1] != width:
            raise UserError(
                f"{where}: {name} has shape {list(tensors[name].shape)}, the base's encoder takes vectors of {width}: "
                "it was made for another model"
            )
        if not bool(torch.isfinite(one).all()):
            raise UserError(f"{where} is damaged: {name} has NaN or infinity; download it again")
    counts = [one.shape[0] for one in both]
    if counts[0] != counts[1] or not 1 <= counts[0] <= _MOST_VECTORS:
        raise UserError(
            f"{where} has {counts[0]} vectors in clip_l and {counts[1]} in clip_g: a word has the same number in both, "
            f"from 1 to {_MOST_VECTORS}"
        )
    return WordVectors(*both)
