"""What a change does to the weight and the bias of its layer: LoRA, DoRA and LyCORIS' kinds (arXiv 2309.14859).

    weight = changed_weight(change, layer.weight)

The arithmetic is ours, since importing `lycoris` takes seconds and its merging of LoHa and LoKr (4.1.3) applies
alpha / rank twice. What its layers compute is the reference that the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import LowRank, Lycoris

Tensors = Mapping[str, Tensor]

#: A layer's tensors without which a kind changes nothing. "locon": a low-rank pair that `LowRank` cannot hold.
_NEEDED: dict[str, tuple[str, ...]] = {
    "locon": ("lora_down.weight", "lora_up.weight"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "lokr": ("lokr_w1|lokr_w1_a", "lokr_w1|lokr_w1_b", "lokr_w2|lokr_w2_a", "lokr_w2|lokr_w2_b"),
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
    "oft": ("oft_blocks",),
    "boft": ("oft_blocks",),
    "full": ("diff|diff_b",),
    "norm": ("w_norm|b_norm",),
}
#: The tensor whose first dimension is the rank; the first that is there counts.
_RANK_OF = {
    "locon": ("lora_down.weight",),
    "loha": ("hada_w1_b",),
    "lokr": ("lokr_w2_b", "lokr_w1_b"),
    "glora": ("a2.weight",),
}
_BIASES = ("diff_b", "b_norm")


def changed_weight(change: LowRank | Lycoris, weight: Tensor, strength: float = 1.0) -> Tensor:
    """The weight [out, in], [out, in, kh, kw] or [C] with a change, in fp32 on the weight's device.

    strength: W + strength (W' - W), as ComfyUI has it. Kinds that are not linear (DoRA, OFT, BOFT) differ between
    programs at other strengths than 1. Raises ValueError for shapes that do not fit (`require_fit` says which).
    """
    weight = weight.detach().float()
    whole = _low_rank(change, weight) if isinstance(change, LowRank) else _lycoris(change, weight)
    return whole if strength == 1 else torch.lerp(weight, whole, strength)


def changed_bias(change: LowRank | Lycoris, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:
    """The bias [out] with a change, in fp32; None for a layer that has none. Raises ValueError as `changed_weight`."""
    stored = [] if isinstance(change, LowRank) else [change.tensors[name] for name in _BIASES if name in change.tensors]
    if bias is None:
        return None
    bias = bias.detach().float()
    for difference in stored:
        bias = bias + strength * _like(difference, bias)
    return bias


def changes_bias(change: LowRank | Lycoris) -> bool:
    """Whether a layer needs a bias to take the change."""
    return isinstance(change, Lycoris) and any(name in change.tensors for name in _BIASES)


def require_fit(change: Lycoris, shape: tuple[int, ...], where: str) -> None:
    """Raise UserError for tensors that are missing, an alpha of 0 or of many numbers, or shapes that do not fit."""
    missing = [
        names.replace("|", " or ")
        for names in _NEEDED[change.kind]
        if not any(name in change.tensors for name in names.split("|"))
    ]
    if missing:
        raise UserError(f"{where} ({change.kind}) lacks {missing[0]}: the file is incomplete, download it again")
    alpha = change.tensors.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise UserError(f"{where} has an alpha of shape {list(alpha.shape)}, which should be one number")
    if alpha is not None and float(alpha) == 0 and (rank := _rank(change)) is not None:
        raise UserError(
            f"{where} has alpha 0, which LyCORIS reads as the rank and ComfyUI as no strength at all: set it to {rank} "
            "for full strength, or leave the layer out"
        )
    # The arithmetic without numbers: what it cannot multiply does not fit.
    shapes_only = {name: t if name == "alpha" else t.detach().to("meta") for name, t in change.tensors.items()}
    blank = Lycoris(change.kind, shapes_only)
    try:
        changed_weight(blank, torch.empty(shape, device="meta"))
        changed_bias(blank, torch.empty(shape[:1], device="meta"))
    except (ValueError, RuntimeError, IndexError):
        listed = ", ".join(f"{name} {list(t.shape)}" for name, t in change.tensors.items() if name != "alpha")
        raise UserError(
            f"{where} ({change.kind}) has {listed}, which do not fit the base's layer {list(shape)}: it was made for "
            "another model"
        ) from None


def _low_rank(change: LowRank, weight: Tensor) -> Tensor:
    down, up = (_on(one, weight) for one in (change.down, change.up))
    changed = weight + _like((up.flatten(1) @ down.flatten(1)) * change.scale, weight)
    return changed if change.magnitude is None else _decomposed(changed, change.magnitude)


def _lycoris(change: Lycoris, weight: Tensor) -> Tensor:
    tensors = {name: tensor if name == "alpha" else _on(tensor, weight) for name, tensor in change.tensors.items()}
    changed = _KINDS[change.kind](tensors, weight, _scale(change))
    return _decomposed(changed, tensors["dora_scale"]) if "dora_scale" in tensors else changed


def _locon(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    delta = tensors["lora_up.weight"].flatten(1) @ tensors["lora_down.weight"].flatten(1)
    return weight + scale * _like(delta, weight)


def _loha(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    halves = []
    for number in (1, 2):
        a, b = tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"]
        core = tensors.get(f"hada_t{number}")
        halves.append(a.flatten(1) @ b.flatten(1) if core is None else _tucker(core, a, b))
    return weight + scale * _like(halves[0] * halves[1], weight)


def _lokr(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    one = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    if "lokr_w2" in tensors:
        two = tensors["lokr_w2"]
    elif "lokr_t2" in tensors:
        two = _tucker(tensors["lokr_t2"], tensors["lokr_w2_a"], tensors["lokr_w2_b"])
    else:
        two = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"].flatten(1)
    # The kernel is the innermost part of a row, so it stays with the second factor.
    return weight + scale * _like(torch.kron(one, two.flatten(1)), weight)


def _glora(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    a1, a2, b1, b2 = (tensors[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    b2 = torch.einsum("mr...,ri->mi...", tensors["bm.weight"], b2.flatten(1)) if "bm.weight" in tensors else b2
    added = _like(b1.flatten(1) @ b2.flatten(1), weight)
    mixed = torch.einsum("oi...,ij->oj...", weight, a1.flatten(1) @ a2.flatten(1))
    return weight + scale * (mixed + added)


def _oft(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    rotations_KBB = _rotations(tensors, weight)
    rows_KBN = weight.reshape(*rotations_KBB.shape[:2], -1)
    return _rescaled(torch.einsum("knm,kni->kmi", rotations_KBB, rows_KBN).reshape(weight.shape), tensors)


def _boft(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    rotations_MKBB = _rotations(tensors, weight)
    blocks, size = rotations_MKBB.shape[1:3]
    rows = weight.flatten(1)
    for level, rotation_KBB in enumerate(rotations_MKBB):
        # Level l of the butterfly mixes rows that are 2^l half blocks apart.
        far = 2**level * (size // 2)
        near = rows.unflatten(0, (-1, 2, far)).transpose(1, 2).reshape(blocks, size, -1)
        turned = torch.einsum("kij,kjn->kin", rotation_KBB, near)
        rows = turned.reshape(-1, far, 2, turned.shape[-1]).transpose(1, 2).reshape(rows.shape)
    return _rescaled(rows.reshape(weight.shape), tensors)


def _full(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    return weight + _like(tensors["diff"], weight) if "diff" in tensors else weight


def _norm(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    return weight + _like(tensors["w_norm"], weight) if "w_norm" in tensors else weight


_KINDS: dict[str, Callable[[Tensors, Tensor, float], Tensor]] = {
    "locon": _locon,
    "loha": _loha,
    "lokr": _lokr,
    "glora": _glora,
    "oft": _oft,
    "boft": _boft,
    "full": _full,
    "norm": _norm,
}


def _on(tensor: Tensor, weight: Tensor) -> Tensor:
    return tensor.detach().to(weight.device, torch.float32)


def _like(delta: Tensor, weight: Tensor) -> Tensor:
    """A change in the shape of the weight; linear layers' may be stored as those of 1x1 convolutions."""
    if delta.shape[:1] != weight.shape[:1] or delta.numel() != weight.numel():
        raise ValueError(f"{list(delta.shape)} is no change of {list(weight.shape)}")
    return delta.to(weight.device, torch.float32).reshape(weight.shape)


def _tucker(core_RS: Tensor, a_RO: Tensor, b_SI: Tensor) -> Tensor:
    return torch.einsum("rs...,ro,si->oi...", core_RS, a_RO, b_SI)


def _rank(change: Lycoris) -> int | None:
    """The number that alpha is divided by; None where alpha is no strength."""
    factors = (change.tensors.get(name) for name in _RANK_OF.get(change.kind, ()))
    return next((int(factor.shape[0]) for factor in factors if factor is not None), None)


def _scale(change: Lycoris) -> float:
    """alpha / rank; 1 without an alpha, and for LoKr with two whole factors."""
    rank, alpha = _rank(change), change.tensors.get("alpha")
    return 1.0 if rank is None or alpha is None else float(alpha) / rank


def _decomposed(weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: rows scaled to their magnitudes [out]; columns for [1, in, ...], as LyCORIS wrote before 3.0."""
    magnitude = _on(magnitude, weight)
    by_input = magnitude.dim() > 1 and magnitude.shape[0] == 1 and weight.shape[0] != 1
    axis = 1 if by_input else 0
    shape = [1] * weight.dim()
    shape[axis] = weight.shape[axis]
    norms = torch.linalg.vector_norm(weight, dim=[d for d in range(weight.dim()) if d != axis], keepdim=True)
    decomposed: Tensor = weight * (magnitude.reshape(shape) / (norms + torch.finfo(torch.float32).eps))
    return decomposed


def _rotations(tensors: Tensors, weight: Tensor) -> Tensor:
    """Cayley's transform of skew matrices [..., B, B], whose norm alpha limits to alpha x rows where it is not 0."""
    blocks = tensors["oft_blocks"]
    count, size = blocks.shape[-3:-1]
    if count * size != weight.shape[0]:
        raise ValueError(f"{count} blocks of {size} do not make {weight.shape[0]} rows")
    skew = blocks - blocks.transpose(-1, -2)
    limit = float(tensors["alpha"]) * weight.shape[0] if "alpha" in tensors else 0.0
    if limit > 0:
        skew = skew * (limit / (torch.linalg.vector_norm(skew) + 1e-8)).clamp(max=1.0)
    one = torch.eye(blocks.shape[-1], device=blocks.device)
    rotations: Tensor = (one + skew) @ torch.linalg.inv(one - skew)
    return rotations


def _rescaled(weight: Tensor, tensors: Tensors) -> Tensor:
    rescale = tensors.get("rescale")
    if rescale is None:
        return weight
    if rescale.numel() != weight.shape[0]:
        raise ValueError(f"{list(rescale.shape)} is not one number for each of {weight.shape[0]} rows")
    shape = (-1, *[1] * (weight.dim() - 1))
    return weight * rescale.reshape(shape)
