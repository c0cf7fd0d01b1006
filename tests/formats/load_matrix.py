"""What we write, and who reads it: the rows, columns and verdicts of the load matrix in `docs/formats.md`.

`python -m tests.formats.load_matrix` prints the table. Each verdict is proven by a test in `test_load_matrix.py`, or in
`tests/interop` for the older libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdxl_ray.formats.adapter import Adapter, Layer, LowRank, stabilised
from tests.formats.adapters import random_adapter, tiny_names

_BLOCK = "mid_block.attentions.0.transformer_blocks.0"
UNET = tuple(Layer("unet", f"{_BLOCK}.attn{n}.{name}") for n in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0"))
CONVOLUTIONS = (Layer("unet", "down_blocks.1.resnets.0.conv1"), Layer("unet", "up_blocks.2.resnets.1.conv_shortcut"))
TEXT = tuple(
    Layer(part, f"text_model.encoder.layers.{layer}.{name}")
    for part, layer in (("text_encoder", 0), ("text_encoder_2", 1))
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
)


def _own_ranks() -> Adapter:
    wide = random_adapter(UNET[:4], rank=8, alpha=4.0)
    return Adapter({**wide.layers, **random_adapter(UNET[4:], rank=2, alpha=2.0, seed=50).layers})


def _rank_stabilised() -> Adapter:
    pairs = random_adapter(UNET, rank=8).low_rank
    return Adapter({layer: LowRank(p.down, p.up, stabilised(16.0, p.rank)) for layer, p in pairs.items()})


#: Row -> an adapter of that kind on the embedded base.
ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "LoRA of the UNet": lambda: random_adapter(UNET, rank=4, alpha=4.0),
    "LoRA of UNet and both text encoders": lambda: random_adapter(UNET + TEXT, rank=4, alpha=4.0),
    "alpha other than the rank": lambda: random_adapter(UNET + TEXT, rank=4, alpha=1.0),
    "rank-stabilised (rsLoRA)": _rank_stabilised,
    "a rank and alpha per layer": _own_ranks,
    "convolutions": lambda: random_adapter(UNET + CONVOLUTIONS, rank=4, alpha=2.0),
    "DoRA": lambda: random_adapter(UNET + TEXT, rank=4, alpha=2.0, dora=True),
}
#: Where diffusers does not read kohya's file as it is meant.
MISREAD = {"DoRA": "drops DoRA", "a rank and alpha per layer": "drops alphas"}
MODELS = ("full model, folder", "full model, single file", "LoRA merged into the model")

COLUMNS = (
    "diffusers (installed)",
    "diffusers 0.35, PEFT 0.17, transformers 4.57",
    "ComfyUI",
    "kohya's scripts",
    "A1111, Forge",
)
YES, MAP = "loads", "by key map"


@dataclass(frozen=True)
class Row:
    """A kind of file, and a verdict for each column."""

    what: str
    file: str
    verdicts: Sequence[str]


def rows() -> list[Row]:
    """The whole table."""
    found = []
    for what in ADAPTERS:
        dora = what == "DoRA"
        found.append(Row(what, "pytorch_lora_weights", (YES, YES, "use kohya's", "use kohya's", "use kohya's")))
        comfy = "other norm: use merged" if dora else MAP
        kohya = "no DoRA: use merged" if dora else MAP
        found.append(Row(what, "kohya_lora", (MISREAD.get(what, YES), "use diffusers'", comfy, kohya, MAP)))
    found += [
        Row(MODELS[0], "folder", (YES, YES, "use single file", "use single file", "use single file")),
        Row(MODELS[1], "single file", (YES, YES, MAP, MAP, MAP)),
        Row(MODELS[2], "folder or single file", (YES, YES, MAP, MAP, MAP)),
    ]
    return found


def table() -> str:
    """The matrix in Markdown, as the docs have it."""
    head = ("what", "file", *COLUMNS)
    lines = [head, ["---"] * len(head), *((row.what, f"`{row.file}`", *row.verdicts) for row in rows())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    assert tiny_names()
    print(table())  # noqa: T201
