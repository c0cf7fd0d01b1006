"""Encoders by name: images (and, for CLIP, texts) as unit vectors, with the preprocessing that belongs to them.

    encoder = load_encoder("dinov2-base")
    encoder.images([photo, drawing])       # fp32 [2, D], unit rows

One code path, whether the encoder is shipped with the embedded base, lies in a folder or comes from the hub. A ViT's
vector is its class token (DINO's protocol), a CLIP's the projected feature.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sdxl_ray.errors import UserError, nearest
from sdxl_ray.evaluation.preprocessing import Preprocessing
from sdxl_ray.io.safetensors_files import PICKLES, content_revision, find_weights, read_json, weight_files
from sdxl_ray.models import hub
from sdxl_ray.models.base_model import own_memory
from sdxl_ray.models.text_encoders import tokenize
from sdxl_ray.models.truncation import Truncation, truncations
from sdxl_ray.models.weight_loading import loading, require_finite
from sdxl_ray.tiny import shipped

Vectors = npt.NDArray[np.float32]

_SHIPPED = {"tiny-identity": shipped.IDENTITY, "tiny-clip": shipped.CLIP}
#: Short name -> hub id and commit. A commit is pinned so that a score means the same next year.
_HUB = {
    # The main branch holds a pickle only; this commit adds the same weights as safetensors.
    "clip-vit-b32": ("openai/clip-vit-base-patch32", "c237dc49a33fc61debc9276459120b7eac67e7ef"),
    "clip-vit-l14": ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"),
    # A pickle only, which is refused with the way out: a folder that somebody has converted.
    "dino-vits16": ("facebook/dino-vits16", "abe3b354cb6a9b6f146096b14a4a9d7eecbcb4bd"),
    "dinov2-base": ("facebook/dinov2-base", "f9e44c814b77203eaa57a6bdbbd535f21ede1415"),
}
NAMES = (*_SHIPPED, *_HUB)
#: Families whose class token comes first, and the arguments that leave out what scores do not need.
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPModel", {}),
    "vit": ("ViTModel", {"add_pooling_layer": False}),  # DINO's files have none, and transformers would draw one
    "dinov2": ("Dinov2Model", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {}),
}
_FILES = ("*.json", "*.txt", "*.safetensors")
_BATCH = 32


@dataclass(frozen=True)
class Encoder:
    """An encoder in memory, in fp32. `preprocessing` is one line of text; `extras` counts tokens before the patches."""

    name: str
    preprocessing: str
    _model: Any
    _prepare: Preprocessing
    _tokenizer: Any | None
    _extras: int

    def images(self, images: Sequence[Image.Image]) -> Vectors:
        """fp32 [N, D], unit rows."""
        return self.encode(images)[0]

    def patches(self, images: Sequence[Image.Image]) -> Vectors:
        """fp32 [N, P, D]: the last layer at every patch, as it is."""
        return self.encode(images)[1]

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> tuple[Vectors, Vectors]:
        """`images` and `patches` at the price of one. Raises ValueError for no images."""
        if not images:
            raise ValueError("no images to encode")
        found = [self._forward(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        rows_ND, patches_NPD = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        return rows_ND, patches_NPD

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        """fp32 [N, D], unit rows. Raises UserError for an encoder that reads no text."""
        if self._tokenizer is None:
            raise UserError(f"encoder {self.name!r} reads no text: prompt fidelity needs a CLIP, as tiny-clip")
        ids_BL = tokenize(self._tokenizer, texts).ids_NL.to(self._model.device)
        rows_ND: Vectors = (
            _unit(self._model.text_projection(self._model.text_model(ids_BL).pooler_output)).cpu().numpy()
        )
        return rows_ND

    def truncations(self, texts: Sequence[str]) -> list[Truncation]:
        """Those of the texts that `texts` reads the beginning of alone."""
        return list(truncations((self._tokenizer,), texts, 75).values()) if self._tokenizer is not None else []

    @property
    def reads_text(self) -> bool:
        """Whether `texts` can be asked."""
        return self._tokenizer is not None

    def _forward(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        pixels_BCHW = torch.from_numpy(self._prepare(images)).to(self._model.device)
        tower = self._model.vision_model if self._tokenizer is not None else self._model
        seen = tower(pixel_values=pixels_BCHW)
        tokens_BLD = seen.last_hidden_state
        if self._tokenizer is not None:
            return _unit(self._model.visual_projection(seen.pooler_output)), tokens_BLD[:, self._extras :]
        return _unit(tokens_BLD[:, 0]), tokens_BLD[:, self._extras :]


def load_encoder(
    name: str, revision: str = "", *, device: torch.device | str = "cpu", setting: str = "encoder"
) -> Encoder:
    """An encoder by short name (`NAMES`), folder, or hub id with its commit (`revision`, or `id@commit`).

    `setting` is what errors call it. Raises UserError: unknown, unreachable (and how to point at a folder), pickled,
    incomplete, or of a family that is not read.
    """
    folder = locate_encoder(name, revision, setting=setting)
    where = f"{setting} {name!r}"
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in _FAMILIES:
        raise UserError(f"{where} is of the family {kind!r}: {nearest(kind, _FAMILIES)}")
    prepare = Preprocessing.load(folder, where)
    model, tokenizer = _load(folder, kind, where)
    registers = int(config.get("num_register_tokens", 0)) if kind == "dinov2_with_registers" else 0
    return Encoder(name, prepare.text, model.to(device), prepare, tokenizer, 1 + registers)


def _unit(rows_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows_ND.float(), dim=-1)


def locate_encoder(name: str, revision: str = "", *, setting: str = "encoder") -> Path:
    """The encoder's folder, from the hub where it must; nothing is loaded. Raises UserError as `load_encoder` does."""
    if name in _SHIPPED:
        return shipped.verify(_SHIPPED[name])
    path = Path(name).expanduser()
    where = f"{setting} {name!r}"
    if name not in _HUB and path.is_dir():
        _check(path, where)
        return path
    if path.suffix in PICKLES or path.is_file():
        raise UserError(f"{where} is a file: give the folder with config.json and model.safetensors")
    plain, _, commit = name.partition("@")
    known, pinned = _HUB.get(name, (plain, commit))
    if not hub.is_id(known):
        raise UserError(f"no {setting} named {name!r}: {nearest(name, NAMES)}, or give a folder or a hub id@commit")
    pinned = revision or pinned
    if not re.fullmatch(r"[0-9a-f]{40}", pinned):  # a branch would make a score another one next year
        raise UserError(
            f"{where} is no folder here, and a hub id needs its commit: write {plain}@COMMIT, 40 hex digits"
        )
    return hub.snapshot(setting, known, pinned, _FILES, lambda folder: _check(folder, where))


def encoder_revision(name: str) -> str:
    """SHA-256 over the files of an encoder, whatever its name stands for. Raises UserError as `locate_encoder` does."""
    return content_revision(locate_encoder(name), _FILES)


def _check(folder: Path, where: str) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        if not (folder / file).is_file():
            raise UserError(f"{where} is incomplete: {file} is missing; copy or download it again")
    find_weights(folder, where)


def _load(folder: Path, kind: str, where: str) -> tuple[Any, Any | None]:
    import transformers

    name, options = _FAMILIES[kind]
    variant = find_weights(folder, where)
    with loading(where):
        model, info = getattr(transformers, name).from_pretrained(
            folder,
            output_loading_info=True,
            dtype=torch.float32,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            **options,
        )
        tokenizer = None
        if kind == "clip":
            tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would continue with random weights and only log it
        raise UserError(f"{where} lacks {len(missing)} weights, as {missing[0]}: copy or download it again")
    model.eval().requires_grad_(False)
    require_finite(model.named_parameters(), where, weight_files(folder))
    own_memory(model)
    return model, tokenizer
