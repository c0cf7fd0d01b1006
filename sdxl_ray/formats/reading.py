"""Reading an adapter file of any spelling into neutral form.

    adapter, unused = read_adapter(tensors, metadata, names, where="dog.safetensors")

A file may be kohya's (ComfyUI, A1111, Forge), LyCORIS', OneTrainer's, PEFT's or diffusers', old and new. A LoRA of
another family than SDXL is refused by `models.importing` before it comes here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Adapter, Layer, LowRank, Lycoris
from sdxl_ray.formats.kohya import alpha_tensor, pair_tensors
from sdxl_ray.formats.layer_names import LayerNames, Shape
from sdxl_ray.formats.lycoris import require_fit
from sdxl_ray.formats.peft_metadata import PeftAlphas
from sdxl_ray.formats.tensor_keys import split
from sdxl_ray.formats.textual_inversion import split_bundled


def read_adapter(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    names: LayerNames,
    where: str,
    alphas: PeftAlphas | None = None,
) -> tuple[Adapter, list[str]]:
    """The adapter, and the names of tensors that fit no layer of this SDXL or no known kind.

    alphas: of PEFT's `adapter_config.json`, for a folder that has one; else those of the metadata are used.
    Words that are bundled with it are the adapter's.
    Raises UserError: a layer spelt twice, half a pair, shapes that do not fit, NaN, or a stored alpha of 0.
    """
    alphas = alphas or PeftAlphas.of_metadata(metadata)
    words, tensors = split_bundled(tensors, names.text_widths, where)
    found, unused = _by_layer(tensors, names, where)
    layers: dict[Layer, LowRank | Lycoris] = {}
    for layer, (module, roles, kinds) in found.items():
        _require_finite(roles, where, module)
        one = f"{where}: {module}"
        shape = names.shape(layer)
        if kinds == {"pair"} and "down" in roles:
            layers[layer] = _low_rank(layer, roles, shape, alphas, one)
        elif kinds == {"ia3"}:
            raise UserError(f"{one} is IA3, which multiplies activations: only changes of weights are supported")
        elif _is_lycoris(kinds, roles):
            layers[layer] = _lycoris(next(iter(kinds), "full"), roles, shape, one)
        else:
            listed = ", ".join(sorted(roles))
            raise UserError(f"{one} has only {listed}, which make no change: the file is incomplete, download it again")
    return Adapter(layers, metadata, words), unused


def _by_layer(
    tensors: Mapping[str, Tensor], names: LayerNames, where: str
) -> tuple[dict[Layer, tuple[str, dict[str, Tensor], set[str]]], list[str]]:
    """Layer -> its module's name in the file, its tensors by role, and the kinds that they speak of."""
    found: dict[Layer, tuple[str, dict[str, Tensor], set[str]]] = {}
    spelt: dict[Layer, dict[str, str]] = defaultdict(dict)
    unused = []
    for name, tensor in tensors.items():
        key = split(name)
        layer = names.find(key.module) if key else None
        if key is None or layer is None:
            unused.append(name)
            continue
        _, roles, kinds = found.setdefault(layer, (key.module, {}, set()))
        role = key.role.removesuffix(".T")
        if role in roles:
            raise UserError(
                f"{where} holds {layer.part} {layer.module} twice, as {spelt[layer][role]} and as {name}: two "
                "adapters or two spellings are in one file, give a file with one"
            )
        spelt[layer][role] = name
        roles[role] = tensor if role == key.role else tensor.T
        kinds |= {key.kind} - {""}
    return found, unused


def _low_rank(
    layer: Layer, roles: dict[str, Tensor], shape: Shape, alphas: PeftAlphas, where: str
) -> LowRank | Lycoris:
    """A low-rank pair; as LyCORIS' "locon" where it changes a bias, or has DoRA's magnitudes by input."""
    magnitude = roles.get("dora_scale")
    by_input = magnitude is not None and len(shape) > 1 and tuple(magnitude.shape) == _by_input(shape)
    rest = {role: tensor for role, tensor in roles.items() if role != "dora_scale"} if by_input else roles
    pair = _pair(layer, rest, shape, alphas, where)
    if not by_input and "diff_b" not in roles:
        return pair
    tensors = pair_tensors(pair) | {"alpha": alpha_tensor(pair.alpha, pair.down.dtype)}
    tensors |= {role: roles[role] for role in ("dora_scale", "diff_b") if role in roles}
    locon = Lycoris("locon", tensors)
    require_fit(locon, shape, where)
    return locon


def _by_input(shape: Shape) -> Shape:
    """The shape of DoRA's magnitudes where they are one per input, as LyCORIS wrote before version 3."""
    return (1, shape[1], *[1] * (len(shape) - 2))


def _pair(layer: Layer, roles: dict[str, Tensor], shape: Shape, alphas: PeftAlphas, where: str) -> LowRank:
    if "up" not in roles:
        raise UserError(f"{where} has one matrix of two: the file is incomplete, download it again")
    down, up = roles["down"], roles["up"]
    if "mid" in roles:  # LoCon's Tucker form: the kernel stands between two 1x1 convolutions
        try:
            down = torch.einsum("mr...,ri->mi...", roles["mid"], down.flatten(1))
        except RuntimeError:
            raise UserError(
                f"{where} has a middle of shape {list(roles['mid'].shape)} that does not fit {list(down.shape)}: the "
                "file is damaged, download it again"
            ) from None
    down, up = _shaped(down, up, shape)
    rank = down.shape[0]
    pair_shape = (*up.shape[:1], *down.shape[1:])
    if pair_shape != shape or up.shape[1] != rank:
        raise UserError(
            f"{where} has the shapes {list(up.shape)} x {list(down.shape)}, the base's layer has {list(shape)}: it was "
            "made for another model"
        )
    magnitude = roles.get("magnitude", roles.get("dora_scale"))
    return LowRank(down, up, _alpha(layer, roles, rank, alphas, where), _magnitude(magnitude, shape, where))


def _shaped(down: Tensor, up: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """A linear layer's pair as matrices: some trainers save 1x1 convolutions for it, and the other way round."""
    if len(shape) == 2:
        if down.dim() == 4 and down.shape[2:] == (1, 1):
            down = down.flatten(1)
        if up.dim() == 4 and up.shape[2:] == (1, 1):
            up = up.flatten(1)
    elif len(shape) == 4:
        if down.dim() == 2:
            down = down[:, :, None, None]
        if up.dim() == 2:
            up = up[:, :, None, None]
    return down, up


def _alpha(layer: Layer, roles: dict[str, Tensor], rank: int, alphas: PeftAlphas, where: str) -> float:
    """The stored alpha; else what PEFT's metadata says; else the rank, as every reader takes it."""
    stored = roles.get("alpha")
    if stored is None:
        return alphas.of(layer, rank)
    if stored.numel() != 1:
        raise UserError(f"{where} has an alpha of shape {list(stored.shape)}, which should be one number")
    alpha = float(stored)
    if alpha == 0:
        raise UserError(
            f"{where} has alpha 0, which kohya's scripts read as the rank and ComfyUI as no strength at all: set it to "
            f"{rank} for full strength, or leave the layer out"
        )
    return alpha


def _magnitude(stored: Tensor | None, shape: Shape, where: str) -> Tensor | None:
    """DoRA's magnitude as [out]; kohya has [out, 1] or [out, 1, 1, 1], PEFT [out] or [1, out, 1, 1]."""
    if stored is None:
        return None
    out = shape[0]
    kohya, peft = (out, *[1] * (len(shape) - 1)), (1, out, *[1] * (len(shape) - 2))
    if tuple(stored.shape) in ((out,), kohya, *([peft] if len(shape) == 4 else [])):
        return stored.reshape(out)
    raise UserError(
        f"{where} has a DoRA magnitude of shape {list(stored.shape)}, one number neither per output ({out}) nor per "
        f"input ({shape[1]}): it was made for another model"
    )


def _is_lycoris(kinds: set[str], roles: Mapping[str, Tensor]) -> bool:
    """Whether the tensors of a layer are of one kind; a change of the bias alone is one too."""
    one = len(kinds) == 1 and "pair" not in kinds and "magnitude" not in roles
    return one or (not kinds and "diff_b" in roles)


def _lycoris(kind: str, roles: Mapping[str, Tensor], shape: Shape, where: str) -> Lycoris:
    # OFT and BOFT have the same names; BOFT's blocks have one dimension more.
    blocks = roles.get("oft_blocks")
    change = Lycoris("boft" if blocks is not None and blocks.dim() == 4 else kind, roles)
    require_fit(change, shape, where)
    return change


def _require_finite(roles: Mapping[str, Tensor], where: str, module: str) -> None:
    for role, tensor in roles.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where} is damaged: {module} has NaN or infinity in {role}; download it again")
