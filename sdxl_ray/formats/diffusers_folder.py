"""Makes a diffusers folder that the newest libraries saved readable for older ones.

transformers since 5.6 saves `CLIPTextModel` without `text_model.`, unless it was loaded from a file that had it; 4.57
then finds none of its weights and draws random ones, with a warning alone. And a tokenizer saved as `tokenizer.json`
alone cannot be read by transformers 4.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from safetensors import safe_open

from sdxl_ray.formats.tensor_file import DTYPES, Entry, write_tensors
from sdxl_ray.io.atomic import write_text
from sdxl_ray.io.safetensors_files import read_header, read_metadata

_WRAPPER = "text_model."


def make_readable(folder: Path) -> None:
    """Mend the folder of a whole pipeline in place. Raises OSError."""
    for part in ("text_encoder", "text_encoder_2"):
        for file in sorted((folder / part).glob("*.safetensors")):
            restore_wrapper(file)
    for part in ("tokenizer", "tokenizer_2"):
        write_vocabulary(folder / part)


def restore_wrapper(file: Path) -> None:
    """Put `text_model.` before every layer of a text encoder's file that lacks it; memory holds one tensor."""
    header = read_header(file, file.name)
    named = {_wrapped(name): name for name in header}
    if all(new == old for new, old in named.items()):
        return
    with safe_open(file, "pt") as opened:
        entries = [
            Entry(new, DTYPES[header[old]["dtype"]], tuple(header[old]["shape"]), partial(opened.get_tensor, old))
            for new, old in named.items()
        ]
        write_tensors(file, entries, read_metadata(file, file.name))


def write_vocabulary(folder: Path) -> None:
    """Write `vocab.json` and `merges.txt` beside a tokenizer's `tokenizer.json`, where they are missing."""
    whole = folder / "tokenizer.json"
    if not whole.is_file() or (folder / "vocab.json").is_file():
        return
    model = json.loads(whole.read_text(encoding="utf-8"))["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))


def _wrapped(name: str) -> str:
    """Heads (`text_projection`) stand beside the wrapper, layers inside."""
    return name if name.startswith((_WRAPPER, "text_projection.")) else _WRAPPER + name
