"""Kohya's LoRA files, which ComfyUI, A1111, Forge, InvokeAI, SD.Next and model sites read.

The names are those of kohya-ss/sd-scripts `networks/lora.py`; LyCORIS' `dora_scale` holds DoRA's magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdxl_ray.formats.adapter import Adapter, LowRank
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.textual_inversion import bundled_tensors


def kohya_tensors(adapter: Adapter, names: LayerNames, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a kohya file by name, contiguous and on the CPU. dtype None: as they are.

    Each layer has its own alpha, also where it equals the rank: readers of this format know no other place for it.
    Layers of LyCORIS' kinds keep their tensors, whose names are the same in every file. Words are bundled. Embeddings
    are left out: no reader of this format has a name for them.
    """
    tensors = bundled_tensors(adapter.words, dtype)
    for layer, change in adapter.layers.items():
        if layer in names.embeddings:
            continue
        name = names.kohya(layer)
        if isinstance(change, LowRank):
            tensors |= {f"{name}.{role}": _kept(tensor, dtype) for role, tensor in pair_tensors(change).items()}
            tensors[f"{name}.alpha"] = alpha_tensor(change.alpha, dtype or change.down.dtype)
        else:
            tensors |= {f"{name}.{role}": _kept(tensor, dtype) for role, tensor in change.tensors.items()}
    return tensors


def alpha_tensor(alpha: float, dtype: torch.dtype) -> Tensor:
    """A 0-dimensional alpha in the file's dtype where that holds it exactly, else in fp32."""
    stored = torch.tensor(alpha, dtype=dtype)
    return stored if float(stored) == alpha else torch.tensor(alpha, dtype=torch.float32)


def pair_tensors(change: LowRank) -> dict[str, Tensor]:
    """The tensors of a low-rank pair by their names in kohya's files, without its alpha."""
    roles = {"lora_down.weight": change.down, "lora_up.weight": change.up}
    if change.magnitude is not None:
        # One number per output, in as many dimensions as the weight has: a vector would broadcast over the inputs.
        roles["dora_scale"] = change.magnitude.reshape(-1, *[1] * (change.down.dim() - 1))
    return roles


def _kept(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    cast = tensor.detach().to("cpu", dtype) if tensor.is_floating_point() else tensor.detach().cpu()
    return cast.contiguous()
