"""What a .safetensors file is, from its header and its smallest tensors: no model is loaded.

print(inspect(Path("pixel_art.safetensors")).kind)      # "LoRA in kohya's names"
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sdxl_ray.errors import UserError
from sdxl_ray.formats.families import SDXL, family_of
from sdxl_ray.formats.hashes import file_hashes
from sdxl_ray.formats.peft_metadata import METADATA_KEY
from sdxl_ray.formats.tensor_file import CONTENT_HASH, KOHYA_HASH
from sdxl_ray.formats.tensor_keys import TensorKey, split
from sdxl_ray.io.safetensors_files import PICKLES, read_header, read_metadata

#: LyCORIS' kinds as people call them.
_KINDS = {
    "loha": "LoHa",
    "lokr": "LoKr",
    "glora": "GLoRA",
    "oft": "OFT",
    "boft": "BOFT",
    "full": "full difference",
    "norm": "norms",
}
#: Beginning of a tensor's name -> what the file is, most certain first.
_OTHER_KINDS: tuple[tuple[str | tuple[str, ...], str], ...] = (
    (("clip_l", "clip_g"), "textual inversion"),
    ("emb_params", "textual inversion of one text encoder (SD 1.x or 2.x)"),
    ("model.diffusion_model.", "whole model in one file"),
    ("first_stage_model.", "VAE in SGM names"),
    (("down_blocks.", "up_blocks."), "UNet of a diffusers folder"),
    (("encoder.", "decoder."), "VAE of a diffusers folder"),
    ("text_model.", "text encoder"),
)
#: Text encoders in a whole model: SDXL's, and those of SD 1.x, 2.x and 3.
_ENCODERS = ("conditioner.", "cond_stage_model.", "text_encoders.")
_CHECKPOINT = ("model.diffusion_model.", "first_stage_model.", *_ENCODERS)
#: Beginning of a module's name -> part of SDXL.
_PARTS = (
    ("lora_te1_", "text encoder 1"),
    ("lora_te2_", "text encoder 2"),
    ("text_encoder_2.", "text encoder 2"),
    ("text_encoder.", "text encoder 1"),
)
_ALL = "sdxl-ray"


@dataclass(frozen=True)
class PartRanks:
    """The layers of a LoRA in one part of SDXL: how many, their ranks, and their alphas (None: stands for the rank)."""

    layers: int
    ranks: tuple[int, ...]
    alphas: tuple[float | None, ...]


@dataclass(frozen=True)
class Inspection:
    """kind: in words. family: None where nothing tells it. readers: the tools that load it as it is meant.

    stored_hashes: name in the metadata -> whether it is that of the bytes.
    """

    file: str
    kind: str
    family: str | None
    tensors: int
    bytes: int
    dtypes: Mapping[str, int]
    readers: tuple[str, ...]
    made_on: str | None = None
    parts: Mapping[str, PartRanks] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    stored_hashes: Mapping[str, bool] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def inspect(file: Path) -> Inspection:
    """Read a file's header, its alphas and all its bytes once for the hashes.

    Raises UserError, one line: a pickle, no safetensors file, one that is cut off, or an alpha that is no number.
    """
    where = repr(str(file))
    if file.suffix in PICKLES:
        raise UserError(f"{where} is a pickle, which can run code when loaded: convert it to safetensors")
    header, metadata = read_header(file, where), read_metadata(file, where)
    keys = {name: key for name in header if (key := split(name)) is not None}
    is_checkpoint = any(name.startswith(_CHECKPOINT) for name in header)
    adapter = bool(keys) and not is_checkpoint
    kind = _adapter_kind(header, keys) if adapter else _other_kind(header)
    family = family_of(header)
    hashes = file_hashes(file)
    named = {"AutoV1": hashes.auto_v1, "AutoV2": hashes.auto_v2, "AutoV3": hashes.auto_v3, "content": hashes.content}
    stored = {
        name: metadata[name].removeprefix("0x") == hashes.content
        for name in (CONTENT_HASH, KOHYA_HASH)
        if name in metadata
    }
    return Inspection(
        file=str(file),
        kind=kind,
        family=family,
        tensors=len(header),
        bytes=file.stat().st_size,
        dtypes=dict(Counter(tensor["dtype"] for tensor in header.values())),
        readers=_readers(header, keys, kind) if family in (SDXL, None) else (),
        made_on=metadata.get("ss_sd_model_name") or metadata.get("modelspec.architecture"),
        parts=_parts(file, header, keys) if adapter else {},
        metadata=metadata,
        hashes=named,
        stored_hashes=stored,
    )


def _adapter_kind(header: Mapping[str, Any], keys: Mapping[str, TensorKey]) -> str:
    kinds = {_kind(key, header[name]["shape"]) for name, key in keys.items()} - {""}
    dora = any(key.role in ("dora_scale", "magnitude") for key in keys.values())
    others = sorted(_KINDS.get(kind, kind.upper()) for kind in kinds - {"pair"})
    if others:
        what = " and ".join(([("DoRA" if dora else "LoRA")] if "pair" in kinds else []) + others)
        return f"LyCORIS ({what})"
    what = "DoRA" if dora else "LoRA"
    if any(
        key.role == "down" and len(header[name]["shape"]) == 4 and header[name]["shape"][-1] > 1
        for name, key in keys.items()
    ):
        what += " with convolutions (LoCon)"
    return f"{what} in {_spelling(keys)} names"


def _kind(key: TensorKey, shape: list[int]) -> str:
    """BOFT has OFT's names, and blocks of one dimension more."""
    return "boft" if key.role == "oft_blocks" and len(shape) == 4 else key.kind


def _spelling(keys: Mapping[str, TensorKey]) -> str:
    modules = [key.module for key in keys.values()]
    if any(module.startswith("lora_unet_") for module in modules):
        sgm = any(part in module for module in modules for part in ("input_blocks", "middle_block", "output_blocks"))
        return "kohya's" if sgm else "kohya's (diffusers spelling)"
    if any(module.startswith("lora_te") for module in modules):
        return "kohya's"
    return "PEFT's" if any(module.startswith("base_model.") for module in modules) else "diffusers'"


def _other_kind(header: Mapping[str, Any]) -> str:
    for begins, kind in _OTHER_KINDS:
        if any(name.startswith(begins) for name in header):
            if kind == "whole model in one file" and not any(name.startswith(_ENCODERS) for name in header):
                return "UNet in one file"
            return kind
    return "unknown"


def _readers(header: Mapping[str, Any], keys: Mapping[str, TensorKey], kind: str) -> tuple[str, ...]:
    """As the load matrix in `docs/formats.md` has it."""
    if kind.startswith("LyCORIS"):
        # Neither this project nor ComfyUI applies IA3.
        return () if "IA3" in kind else (_ALL, "ComfyUI", "A1111 and Forge")
    if kind.startswith("DoRA") and "kohya" in kind:
        return (_ALL, "A1111 and Forge")
    if "kohya" in kind:
        return (_ALL, "diffusers", "ComfyUI", "A1111 and Forge", "kohya's scripts")
    if kind.startswith(("LoRA", "DoRA")):
        return (_ALL, "diffusers") if "diffusers" in kind else (_ALL, "PEFT")
    if kind in ("whole model in one file", "textual inversion"):
        return (_ALL, "diffusers", "ComfyUI", "A1111 and Forge")
    return ()


def _parts(file: Path, header: Mapping[str, Any], keys: Mapping[str, TensorKey]) -> dict[str, PartRanks]:
    ranks: dict[str, list[int]] = defaultdict(list)
    alphas: dict[str, list[float | None]] = defaultdict(list)
    modules: dict[str, set[str]] = defaultdict(set)
    stored = {key.module: name for name, key in keys.items() if key.role == "alpha"}
    with safe_open(file, "pt") as opened:
        for name, key in keys.items():
            part = next((what for head, what in _PARTS if key.module.startswith(head)), "UNet")
            modules[part].add(key.module)
            if key.role == "down" and header[name]["shape"]:
                ranks[part].append(header[name]["shape"][0])
                alpha = stored.get(key.module)
                alphas[part].append(_alpha(file, alpha, opened.get_tensor(alpha)) if alpha is not None else None)
    return {
        part: PartRanks(len(found), tuple(sorted(set(ranks[part]))), tuple(dict.fromkeys(alphas[part])))
        for part, found in modules.items()
    }


def _alpha(file: Path, name: str, alpha: Any) -> float:
    if alpha.numel() != 1 or not math.isfinite(alpha.item()):
        what = "NaN or infinity" if alpha.numel() == 1 else f"{alpha.numel()} numbers"
        raise UserError(f"{str(file)!r} is damaged: {name} holds {what}, an alpha is one number; download it again")
    return float(alpha)


def shown_metadata(metadata: Mapping[str, str], most: int = 100) -> dict[str, str]:
    """Metadata for a terminal: long values are cut, what libraries keep for themselves is left out."""
    return {
        name: value if len(value) <= most else f"{value[:most]}..."
        for name, value in sorted(metadata.items())
        if name not in ("format", METADATA_KEY)
    }
