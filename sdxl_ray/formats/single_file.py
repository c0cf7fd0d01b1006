"""One SDXL in one .safetensors file, as ComfyUI, A1111 and kohya's scripts load it, from a diffusers folder.

The names are SGM's: the UNet and VAE as `sgm_names` derives them, text encoder 1 as Hugging Face has it, text encoder 2
as OpenCLIP has it (q, k and v stacked, the projection transposed). Tensors are read when they are written, so memory
holds one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats import sgm_names
from sdxl_ray.formats.tensor_file import CONTENT_HASH, DTYPES, Entry, write_tensors
from sdxl_ray.io.safetensors_files import read_header, read_json, weight_files

UNET, VAE = "model.diffusion_model.", "first_stage_model."
ENCODER_1, ENCODER_2 = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
#: OpenCLIP's scale of its contrastive loss, which no text encoder of a diffusers folder has: ln 100.
_LOGIT_SCALE = math.log(100)

_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_STACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def write_single_file(
    folder: Path, target: Path, *, metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write the model of a diffusers folder as one file, whole or not at all.

    dtype: of the floating-point weights; None: as they are stored. A scheduler that predicts v gets the marker tensors
    by which ComfyUI knows it (`v_pred`, `ztsnr`). Raises UserError for a folder whose weights its configs do not name,
    OSError for a full disk.
    """
    with ExitStack() as stack:
        entries = [
            *_renamed(
                _Weights(folder / "unet", stack), UNET, sgm_names.unet(read_json(folder / "unet" / "config.json"))
            ),
            *_vae(_Weights(folder / "vae", stack), sgm_names.vae(read_json(folder / "vae" / "config.json"))),
            *_encoder_1(_Weights(folder / "text_encoder", stack)),
            *_encoder_2(_Weights(folder / "text_encoder_2", stack)),
            *_markers(read_json(folder / "scheduler" / "scheduler_config.json")),
        ]
        write_tensors(target, [_cast(entry, dtype) for entry in entries], metadata, (CONTENT_HASH,))


class _Weights:
    """The tensors of a model's files by name, as entries under other names."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._headers: dict[str, Any] = {}
        self._opened: dict[str, Any] = {}
        for file in weight_files(folder):
            header = read_header(file, str(folder))
            opened = stack.enter_context(safe_open(file, "pt"))
            self._headers |= header
            self._opened |= dict.fromkeys(header, opened)

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._headers[name]["shape"])

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._opened[name].get_tensor(name)
        return tensor

    def entry(self, name: str, target: str) -> Entry:
        return Entry(target, DTYPES[self._headers[name]["dtype"]], self.shape(name), partial(self.read, name))


def _renamed(weights: _Weights, prefix: str, names: sgm_names.Renaming) -> Iterator[Entry]:
    for name in weights:
        theirs = names.to_sgm(name)
        if theirs is None:
            raise UserError(f"{str(weights.folder)!r}: {name} is no weight of the model that its config.json describes")
        yield weights.entry(name, prefix + theirs)


def _vae(weights: _Weights, names: sgm_names.Renaming) -> Iterator[Entry]:
    """Attention's matrices are 1x1 convolutions there."""
    for entry, name in zip(_renamed(weights, VAE, names), weights, strict=True):
        attention = ".attentions." in name and name.endswith(".weight") and len(entry.shape) == 2
        yield _with(entry, (*entry.shape, 1, 1), _as_convolution) if attention else entry


def _encoder_1(weights: _Weights) -> Iterator[Entry]:
    for name in weights:
        yield weights.entry(name, f"{ENCODER_1}text_model.{_bare(name)}")
    positions = next(weights.shape(name)[0] for name in weights if "position_embedding" in name)
    ids = Entry("", torch.int64, (1, positions), lambda: torch.arange(positions)[None])
    yield Entry(f"{ENCODER_1}text_model.embeddings.position_ids", ids.dtype, ids.shape, ids.read)


def _encoder_2(weights: _Weights) -> Iterator[Entry]:
    for name in weights:
        bare = _bare(name)
        if bare in _OPEN_CLIP:
            yield weights.entry(name, ENCODER_2 + _OPEN_CLIP[bare])
        elif bare == "text_projection.weight":
            # OpenCLIP multiplies from the other side.
            entry = weights.entry(name, f"{ENCODER_2}text_projection")
            yield _with(entry, entry.shape[::-1], lambda matrix: matrix.T.contiguous())
        else:
            yield from _open_clip_layer(weights, name, bare)
    some = next(iter(weights))
    scale = weights.entry(some, f"{ENCODER_2}logit_scale")
    yield Entry(scale.name, scale.dtype, (), lambda: torch.tensor(_LOGIT_SCALE, dtype=scale.dtype))


def _open_clip_layer(weights: _Weights, name: str, bare: str) -> Iterator[Entry]:
    """A tensor of `encoder.layers`; k and v come with q, as one."""
    layer, _, rest = bare.removeprefix("encoder.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    block = f"{ENCODER_2}transformer.resblocks.{layer}"
    if part in _OPEN_CLIP_LAYER:
        yield weights.entry(name, f"{block}.{_OPEN_CLIP_LAYER[part]}.{kind}")
    elif part == _STACKED[0]:
        three = [name.replace(_STACKED[0], one) for one in _STACKED]
        shape = (3 * weights.shape(name)[0], *weights.shape(name)[1:])
        one = weights.entry(name, f"{block}.attn.in_proj_{kind}")
        yield Entry(one.name, one.dtype, shape, lambda: torch.cat([weights.read(each) for each in three]))
    elif part not in _STACKED:
        raise UserError(f"{str(weights.folder)!r}: {name} is no weight of a CLIP text encoder")


def _markers(scheduler: Mapping[str, Any]) -> Iterator[Entry]:
    if scheduler.get("prediction_type") == "v_prediction":
        yield Entry.of("v_pred", torch.empty(0))
        if scheduler.get("rescale_betas_zero_snr"):
            yield Entry.of("ztsnr", torch.empty(0))


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")


def _as_convolution(matrix: Tensor) -> Tensor:
    return matrix[:, :, None, None]


def _with(entry: Entry, shape: tuple[int, ...], change: Any) -> Entry:
    return Entry(entry.name, entry.dtype, shape, lambda: change(entry.read()))


def _cast(entry: Entry, dtype: torch.dtype | None) -> Entry:
    """In another precision, but for numbers that are no weights."""
    if dtype is None or not entry.dtype.is_floating_point:
        return entry
    return Entry(entry.name, dtype, entry.shape, lambda: _within(entry.name, entry.read(), dtype))


def _within(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another precision. Raises UserError for a number beyond it, which would become infinity."""
    cast = tensor.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        largest = float(tensor.abs().max())
        raise UserError(f"{name} holds {largest:g}, beyond what {dtype} reaches: write it in bf16 or fp32")
    return cast
