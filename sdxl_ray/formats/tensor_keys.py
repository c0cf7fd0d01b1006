"""Tensor names of adapter files: which module a tensor belongs to, and what it is there.

Kohya's and LyCORIS' trainers, PEFT, diffusers' older and newer scripts each have their own; the module's own name is
resolved by `formats.layer_names`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

#: A low-rank pair, in the order of the alternatives: kohya, PEFT (with or without an adapter's name), diffusers' older.
_PAIR = re.compile(
    r"(?:\.lora_(down|up|mid)|\.lora_([AB])(?:\.\w+)?|[._]lora\.(down|up)|\.lora_linear_layer\.(down|up))\.weight$"
)
_MAGNITUDE = re.compile(r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?$")
#: PEFT has the embeddings' matrices the other way round.
_EMBEDDING = re.compile(r"\.lora_embedding_([AB])(?:\.\w+)?$")
_HALVES = {"A": "down", "B": "up"}
#: LyCORIS: kind -> tensors of a layer.
_LYCORIS = {
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    "oft": ("oft_blocks", "rescale"),
    "full": ("diff",),
    "norm": ("w_norm", "b_norm"),
    "ia3": ("on_input",),
}
_LYCORIS_ROLES = {role: kind for kind, roles in _LYCORIS.items() for role in roles}


class TensorKey(NamedTuple):
    """A tensor's name in parts.

    role: "down", "up", "mid", "alpha", "dora_scale" (kohya's magnitude), "magnitude" (PEFT's), "diff_b" (added to the
    bias), or LyCORIS' own name. kind: "pair" for the first three, LyCORIS' kind, or "" for what several kinds have.

    PEFT's matrices of embeddings are transposed: "down.T" and "up.T".
    """

    module: str
    role: str
    kind: str


def split(name: str) -> TensorKey | None:
    """The parts of a tensor's name, or None for one that no adapter format has."""
    if match := _PAIR.search(name):
        half = next(group for group in match.groups() if group)
        return TensorKey(name[: match.start()], _HALVES.get(half, half), "pair")
    if match := _EMBEDDING.search(name):
        return TensorKey(name[: match.start()], "up.T" if match[1] == "A" else "down.T", "pair")
    if match := _MAGNITUDE.search(name):
        return TensorKey(name[: match.start()], "magnitude", "")
    for role in ("alpha", "dora_scale", "diff_b"):
        if name.endswith(f".{role}"):
            return TensorKey(name.removesuffix(f".{role}"), role, "")
    for role, kind in _LYCORIS_ROLES.items():
        if name.endswith(f".{role}"):
            return TensorKey(name.removesuffix(f".{role}"), role, kind)
    return None
