"""Writes safetensors files tensor by tensor: memory holds one of them, and equal content is equal bytes.

The library's own writer needs every tensor in memory and orders the metadata at random. The layout is the library's:
tensors by falling size of their numbers, then by name; a header padded with spaces to 8 bytes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdxl_ray.formats.hashes import LEGACY_BYTES, LEGACY_START, legacy_hash
from sdxl_ray.io.atomic import whole_file

#: torch's types by the names of the format.
NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
#: The opposite.
DTYPES = {name: dtype for dtype, name in NAMES.items()}
#: Metadata that names the content of its own file, each filled in once the content is written.
CONTENT_HASH, KOHYA_HASH, LEGACY_HASH = "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"
_UNKNOWN = {CONTENT_HASH: "0x" + "0" * 64, KOHYA_HASH: "0" * 64, LEGACY_HASH: "0" * 8}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its name, type and shape, and how to get it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Entry:
        """A tensor that is in memory."""
        return cls(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_tensors(
    path: Path, entries: Iterable[Entry], metadata: Mapping[str, str], hashes: Iterable[str] = ()
) -> None:
    """Write a whole file or none.

    hashes: which of CONTENT_HASH, KOHYA_HASH and LEGACY_HASH to put into the metadata. Raises OSError for a full disk.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    wanted = dict.fromkeys(hashes)
    with whole_file(path) as draft:
        draft.write_bytes(_header(ordered, {**metadata, **{name: _UNKNOWN[name] for name in wanted}}))
        # Of the file as kohya hashes it: before the hashes, with the `ss_` metadata alone.
        before = len(_header(ordered, {key: value for key, value in metadata.items() if key.startswith("ss_")}))
        digest, window = _write_data(draft, ordered, LEGACY_START - before)
        if wanted:
            found = {CONTENT_HASH: f"0x{digest}", KOHYA_HASH: digest, LEGACY_HASH: legacy_hash(window)}
            with draft.open("r+b") as stream:
                stream.write(_header(ordered, {**metadata, **{name: found[name] for name in wanted}}))


def write_in_memory(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], hashes: Iterable[str] = ()
) -> None:
    """The same for tensors that are in memory."""
    write_tensors(path, [Entry.of(name, tensor) for name, tensor in tensors.items()], metadata, hashes)


def _write_data(file: Path, ordered: list[Entry], window_start: int) -> tuple[str, bytes]:
    """Append every tensor. Returns the SHA-256 of all of them, and the bytes of the legacy hash's window."""
    digest, position, window = hashlib.sha256(), 0, bytearray()
    with file.open("ab") as stream:
        for entry in ordered:
            data = _bytes_of(entry)
            stream.write(data)
            digest.update(data)
            start, stop = (max(0, edge - position) for edge in (window_start, window_start + LEGACY_BYTES))
            window += data[start:stop]
            position += len(data)
    return digest.hexdigest(), bytes(window)


def _bytes_of(entry: Entry) -> memoryview:
    tensor = entry.read().detach().to("cpu", entry.dtype).contiguous()
    assert tuple(tensor.shape) == entry.shape, entry.name
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _header(ordered: list[Entry], metadata: Mapping[str, str]) -> bytes:
    plain: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for entry in ordered:
        end = position + entry.nbytes
        plain[entry.name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return struct.pack("<Q", len(text)) + text
