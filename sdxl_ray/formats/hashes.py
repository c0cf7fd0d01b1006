"""The hashes by which model sites and user interfaces know a file.

AutoV1, AutoV2 and AutoV3 are Civitai's names; A1111 shows AutoV2 for checkpoints and AutoV3 for LoRAs. kohya's scripts
store two of them in a LoRA's metadata. Source: A1111 `modules/hashes.py` and `extensions-builtin/Lora/network.py`;
kohya-ss/sd-scripts `library/train_util.py`.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

#: The legacy rule reads so many bytes from there.
LEGACY_START, LEGACY_BYTES = 2**20, 2**16
_BLOCK = 2**20


@dataclass(frozen=True)
class FileHashes:
    """auto_v1: 8 hex digits, auto_v2: 10, auto_v3: 12; content: SHA-256 of all bytes after the header, 64."""

    auto_v1: str
    auto_v2: str
    content: str

    @property
    def auto_v3(self) -> str:
        """The beginning of the content's hash."""
        return self.content[:12]


def file_hashes(path: Path) -> FileHashes:
    """The hashes of a safetensors file, which is read once. Raises OSError."""
    whole, content = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as stream:
        start = stream.read(8)
        header = stream.read(struct.unpack("<Q", start)[0])
        whole.update(start + header)
        while block := stream.read(_BLOCK):
            whole.update(block)
            content.update(block)
        stream.seek(LEGACY_START)
        window = stream.read(LEGACY_BYTES)
    return FileHashes(legacy_hash(window), whole.hexdigest()[:10], content.hexdigest())


def legacy_hash(window: bytes | memoryview) -> str:
    """8 hex digits of the SHA-256 of what lies in the legacy rule's window; of a smaller file, of nothing."""
    return hashlib.sha256(window).hexdigest()[:8]
