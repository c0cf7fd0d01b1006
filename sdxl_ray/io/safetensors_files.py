"""Safetensors files on disk: which belong to a model folder, whether they are whole, and the hash of their content."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdxl_ray.cache_folder import cache_root
from sdxl_ray.errors import UserError
from sdxl_ray.io.atomic import write_text
from sdxl_ray.io.file_hash import sha256

#: Formats that run code when they are loaded.
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")

#: The parts of an SDXL pipeline, and the files of one that are read: text and safetensors.
PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
PIPELINE_TEXT = ("model_index.json", *(f"{part}/*{suffix}" for part in PARTS for suffix in (".json", ".txt")))
PIPELINE_FILES = (*PIPELINE_TEXT, *(f"{part}/*.safetensors" for part in PARTS))
MODEL_FILES = ("*.json", "*.safetensors")

_STEMS = ("diffusion_pytorch_model", "model")
_VARIANTS = (None, "fp16", "bf16")
_START_BYTES = 64
_PARTIAL = (".incomplete", ".part", ".crdownload", ".aria2", ".tmp", ".download")
_MAX_JSON_BYTES = 10 * 2**20
_MAX_HEADER_BYTES = 100 * 2**20  # the limit that safetensors itself sets


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 10 MiB. Raises UserError when it is anything else."""
    try:
        size = path.stat().st_size
        if size > _MAX_JSON_BYTES:
            raise UserError(f"{path} has {size} bytes, a config has at most {_MAX_JSON_BYTES}")
        plain = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        other = _other_content(path.read_bytes()[:_START_BYTES])
        raise UserError(f"{path} is not JSON{other or '; copy or download it again'}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path} holds a {type(plain).__name__}, not a JSON object")
    return plain


def find_weights(folder: Path, where: str) -> str | None:
    """The variant (None for the plain one, `fp16`, …) in which a model folder holds whole safetensors weights.

    Raises UserError: only pickles, nothing, a missing shard, a truncated file.
    """
    return weights_of(folder, where)[0]


def weights_of(folder: Path, where: str) -> tuple[str | None, list[Path]]:
    """The variant that `find_weights` names, and its files. Raises UserError as `find_weights` does."""
    for variant in _VARIANTS:
        for stem in _STEMS:
            single = folder / ".".join(filter(None, (stem, variant, "safetensors")))
            index = folder / ".".join(filter(None, (stem, "safetensors", "index", variant, "json")))
            files = [single] if single.is_file() else _shards(index, where) if index.is_file() else []
            for file in files:
                read_header(file, where)
            if files:
                return variant, files
    if any(file.suffix in PICKLES for file in _files(folder)):
        raise UserError(f"{where} has only pickled weights, which are never loaded: convert them to safetensors")
    partial = next((file.name for file in _files(folder) if file.suffix in _PARTIAL), None)
    others = [file.name for file in _files(folder) if file.suffix == ".safetensors"]
    found = f" but the partial download {partial}" if partial else f" but {others[0]}" if others else ""
    raise UserError(f"{where} is incomplete: no safetensors weights{found}; copy or download it again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `find_weights` has found in a model folder."""
    return [file for file in _files(folder) if file.suffix == ".safetensors"]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


#: What a file may be that was saved under another's name, by its first bytes.
_OTHERS = (
    (
        (b"version https://git-lfs",),
        "a Git LFS pointer: run git lfs pull in its folder, or download the file itself",
    ),
    (
        (b"<!doctype", b"<html", b"<?xml", b"<head"),
        "a web page: download it again, with a token or an accepted licence where the site asks for it",
    ),
    (
        (b"pk\x03\x04", b"\x80\x02", b"\x80\x04"),
        "a pickle with another suffix, which can run code when loaded: convert it to safetensors",
    ),
    ((b"gguf",), "GGUF, whose weights are quantized: give the safetensors that it was made from"),
)


def _other_content(start: bytes) -> str:
    """How a file begins that should be another, and the fix: `" but a Git LFS pointer: …"`, or ""."""
    if not start:
        return ", it is empty: copy or download it again"
    for heads, what in _OTHERS:
        if start.lstrip().lower().startswith(heads):
            return f" but {what}"
    printable = len(start) > 8 and all(32 <= byte < 127 or byte in b"\r\n\t" for byte in start)
    return f" but text ({start[:30].decode()!r}): copy or download it again" if printable else ""


def read_header(file: Path, where: str) -> dict[str, Any]:
    """Names, types and shapes of the tensors in a safetensors file; its length is checked against them."""
    return _whole_header(file, where)[0]


def read_metadata(file: Path, where: str) -> dict[str, str]:
    """The metadata of a safetensors file, checked as `read_header` does."""
    return _whole_header(file, where)[1]


def _whole_header(file: Path, where: str) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(_START_BYTES)
            length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                other = _other_content(start) or " or is cut off; copy or download it again"
                raise UserError(f"{where}: {file.name} is not a safetensors file{other}")
            stream.seek(8)
            header = json.loads(stream.read(length))
            metadata = dict(header.pop("__metadata__", None) or {})
            end = max((_end_of(tensor) for tensor in header.values()), default=0)
            if not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError("metadata values are strings")
    except OSError as error:
        raise UserError(f"{where}: {file.name} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: {file.name} has a broken header; copy or download it again") from None
    if size != 8 + length + end:
        raise UserError(f"{where}: {file.name} has {size} bytes of {8 + length + end}; copy or download it again")
    return dict(header), metadata


def _end_of(tensor: dict[str, Any]) -> int:
    """Where a tensor's bytes end. Raises ValueError, KeyError or TypeError for an entry that the format has not."""
    if not isinstance(tensor["dtype"], str) or not all(isinstance(edge, int) and edge >= 0 for edge in tensor["shape"]):
        raise ValueError("a tensor has a dtype and a shape")
    return int(tensor["data_offsets"][1])


def content_revision(path: Path, patterns: Sequence[str] = ()) -> str:
    """SHA-256 over the names and hashes of the files in a folder that match `patterns`, or of one file.

    A 7 GB base takes about 10 s to hash, so each file's hash is kept in the user's cache folder beside its size and
    modification time and only computed again when one of them changed.
    """
    if path.is_file():
        return _file_hash(path)
    names = sorted({file.relative_to(path).as_posix() for pattern in patterns for file in path.glob(pattern)})
    lines = [f"{name} {_file_hash(path / name)}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _shards(index: Path, where: str) -> list[Path]:
    shards = read_json(index).get("weight_map")
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    if not names:
        raise UserError(f"{where}: {index.name} names no weights; copy or download it again")
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise UserError(f"{where}: {index.name} names {name!r}, which is not a safetensors file beside it")
        if not (index.parent / name).is_file():
            raise UserError(f"{where} is incomplete: {name} is missing; copy or download it again")
    return [index.parent / name for name in names]


def _file_hash(file: Path) -> str:
    real = file.resolve()
    stat = real.stat()
    if stat.st_size < 2**20:  # quicker to read than to look up
        return sha256(real)
    note = cache_root() / "hashes" / f"{hashlib.sha256(str(real).encode()).hexdigest()}.json"
    seen = {"path": str(real), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    try:
        known = json.loads(note.read_bytes())
        if {**seen, "sha256": known["sha256"]} == known:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note yet, or a damaged one: compute it again
    digest = sha256(real)
    _keep(note, {**seen, "sha256": digest})
    return digest


def _keep(note: Path, plain: dict[str, Any]) -> None:
    """Write a note atomically; a cache that cannot be written only costs time."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(plain), shared=True)
    except OSError:
        return
