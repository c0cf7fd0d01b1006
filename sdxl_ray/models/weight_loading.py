"""Loading weights with other libraries: whatever they raise is one line, and weights that are no numbers are named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_ray.errors import UserError
from sdxl_ray.models.quiet_libraries import quiet_libraries

if TYPE_CHECKING:
    import torch

#: diffusers' loader names the class of the part that a single file has not.
_CLASSES = {"CLIPTextModelWithProjection": "text_encoder_2", "CLIPTextModel": "text_encoder", "AutoencoderKL": "vae"}
_FIXES = {"vae": "set base.vae=FOLDER (a diffusers VAE folder) or give a checkpoint with a VAE"}
_MISMATCH = re.compile(r"([\w.]+)\W+(?:expected shape|copying a param with shape)\D*(\[[\d, ]*\])\D*(\[[\d, ]*\])")


@contextmanager
def loading(where: str, fix: str = "copy or download it again") -> Iterator[None]:
    """Inside, libraries are quiet, and any error of theirs is a UserError that begins with `where`.

    Their exceptions have no common class (diffusers' SingleFileComponentError is an Exception, safetensors' too), so
    all are caught but those that are not about the files.
    """
    import torch

    try:
        with quiet_libraries():
            yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(f"{where} cannot be loaded: {_reason(error, fix)}") from error


def require_finite(named: Iterable[tuple[str, torch.Tensor]], where: str, files: list[Path]) -> None:
    """Raise UserError that names the file and the tensor when a weight is NaN or infinite.

    One sum a tensor, which reads every number once.
    """
    import torch

    weights = [(name, weight) for name, weight in named if weight.is_floating_point()]
    if not weights:
        return
    sums = torch.stack([weight.detach().sum(dtype=torch.float32) for _, weight in weights])
    for index in (~torch.isfinite(sums)).nonzero().flatten().tolist():
        name, weight = weights[index]
        bad = int((~torch.isfinite(weight)).sum())
        if bad:  # else the sum alone was too large
            file = _file_of(name, files)
            place = f"{file.parent.name}/{file.name}" if file else where
            raise UserError(
                f"{where} is damaged: {place} has NaN or infinity in {name} ({bad} of {weight.numel()} numbers"
                f"{', in fp16' if weight.dtype == torch.float16 else ''}): copy or download it again"
                f"{', or use precision bf16 or fp32' if weight.dtype == torch.float16 else ''}"
            )


def _reason(error: Exception, fix: str) -> str:
    text = str(error).strip()
    named = next((part for name, part in _CLASSES.items() if re.search(rf"\b{name}\b", text)), None)
    if type(error).__name__ == "SingleFileComponentError" and named:
        return f"the file has no {named}: {_FIXES.get(named, 'give the whole checkpoint')}"
    if "valid CLIP model" in text:
        return "a text encoder of the file is incomplete: give the whole checkpoint"
    shapes = _MISMATCH.search(text)
    if shapes:
        return f"the shapes {shapes[2]} and {shapes[3]} of {shapes[1]} differ between weights and config.json: {fix}"
    first = (text.splitlines() or [""])[0][:300]
    return f"{first or type(error).__name__}: {fix}"


def _file_of(tensor: str, files: list[Path]) -> Path | None:
    """The file that holds a tensor; its name may have or lack `text_model.`, as versions of transformers differ."""
    from safetensors import safe_open

    bare = tensor.removeprefix("text_model.")
    for file in files:
        with safe_open(file, "pt") as opened:
            if any(name.removeprefix("text_model.") == bare for name in opened.keys()):  # noqa: SIM118
                return file
    return files[0] if len(files) == 1 else None
