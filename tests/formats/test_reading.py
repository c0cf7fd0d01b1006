"""Adapter files of every spelling, and what is wrong with some of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Adapter, Layer, LowRank, Lycoris
from sdxl_ray.formats.diffusers_lora import diffusers_tensors
from sdxl_ray.formats.kohya import kohya_tensors
from sdxl_ray.formats.peft_metadata import METADATA_KEY, PeftAlphas
from sdxl_ray.formats.reading import read_adapter
from tests.formats.adapters import ATTENTION, CONVOLUTION, ENCODER_1, EVERYWHERE, MLP_2, random_adapter, tiny_names

Tensors = dict[str, Tensor]


def read(tensors: Tensors, metadata: dict[str, str] | None = None, alphas: PeftAlphas | None = None) -> Adapter:
    adapter, unused = read_adapter(tensors, metadata or {}, tiny_names(), "x.safetensors", alphas)
    assert not unused
    return adapter


def same(one: Adapter, other: Adapter) -> bool:
    def equal(a: LowRank, b: LowRank) -> bool:
        magnitudes = (a.magnitude is None) == (b.magnitude is None)
        if a.magnitude is not None and b.magnitude is not None:
            magnitudes = torch.equal(a.magnitude, b.magnitude)
        return torch.equal(a.down, b.down) and torch.equal(a.up, b.up) and a.alpha == b.alpha and magnitudes

    pairs, others = one.low_rank, other.low_rank
    return pairs.keys() == others.keys() and all(equal(pairs[layer], others[layer]) for layer in pairs)


@pytest.mark.parametrize("dora", [False, True])
def test_kohya_and_diffusers_files_hold_the_same_adapter(dora: bool) -> None:
    adapter = random_adapter(dora=dora)
    there = read(kohya_tensors(adapter, tiny_names()))
    back = read(*diffusers_tensors(there))
    assert same(there, adapter)
    assert same(back, adapter)


def test_ranks_and_alphas_differ_from_layer_to_layer_in_both_formats() -> None:
    layers = {**random_adapter(EVERYWHERE[:3], rank=4, alpha=2.0).layers}
    layers |= random_adapter(EVERYWHERE[2:], rank=8, alpha=32.0, seed=9).layers
    adapter = Adapter(layers)
    assert same(read(kohya_tensors(adapter, tiny_names())), adapter)
    tensors, metadata = diffusers_tensors(adapter)
    assert same(read(tensors, metadata), adapter)
    packed = json.loads(metadata[METADATA_KEY])
    assert packed["unet.r"] == 4
    assert packed["unet.rank_pattern"] == {CONVOLUTION.module: 8}
    assert packed["unet.alpha_pattern"] == {CONVOLUTION.module: 32}


def test_an_alpha_that_half_precision_cannot_hold_is_kept_in_fp32() -> None:
    alpha = 16 * math.sqrt(8)
    tensors = kohya_tensors(random_adapter([ATTENTION], alpha=alpha), tiny_names(), torch.float16)
    stored = next(value for name, value in tensors.items() if name.endswith(".alpha"))
    assert stored.shape == ()
    assert stored.item() == pytest.approx(alpha, rel=1e-7)
    assert {value.dtype for name, value in tensors.items() if not name.endswith(".alpha")} == {torch.float16}


def _spelt(head: str, down: str, up: str) -> Callable[[LowRank], Tensors]:
    return lambda pair: {f"{head}{down}": pair.down, f"{head}{up}": pair.up}


_TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.mark.parametrize(
    "spelt",
    [
        _spelt(f"unet.{_TO_Q}.to_q", ".lora_A.weight", ".lora_B.weight"),
        _spelt(f"base_model.model.{_TO_Q}.to_q", ".lora_A.default.weight", ".lora_B.default.weight"),
        _spelt(f"unet.{_TO_Q}.to_q", ".lora.down.weight", ".lora.up.weight"),
        _spelt(f"unet.{_TO_Q}.processor.to_q_lora", ".down.weight", ".up.weight"),
        _spelt(f"unet.{_TO_Q}.to_q", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        _spelt("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", ".lora_down.weight", ".lora_up.weight"),
        _spelt("lora_unet_" + _TO_Q.replace(".", "_") + "_to_q", ".lora_down.weight", ".lora_up.weight"),
    ],
)
def test_a_file_without_alpha_has_full_strength_in_every_spelling(spelt: Callable[[LowRank], Tensors]) -> None:
    pair = random_adapter([ATTENTION]).low_rank[ATTENTION]
    found = read(spelt(pair)).low_rank[ATTENTION]
    assert torch.equal(found.down, pair.down)
    assert found.scale == 1.0


def test_peft_configurations_give_alpha_and_rank_stabilised_scale() -> None:
    pair = random_adapter([ATTENTION], rank=4).low_rank[ATTENTION]
    tensors = _spelt(f"base_model.model.{_TO_Q}.to_q", ".lora_A.weight", ".lora_B.weight")(pair)
    plain = PeftAlphas({"unet": {"lora_alpha": 8}})
    stabilised = PeftAlphas({"unet": {"lora_alpha": 8, "use_rslora": True}})
    pattern = PeftAlphas({"unet": {"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 1}}})
    assert read(tensors, alphas=plain).low_rank[ATTENTION].scale == 2.0
    assert read(tensors, alphas=stabilised).low_rank[ATTENTION].scale == 8 / math.sqrt(4)
    assert read(tensors, alphas=pattern).low_rank[ATTENTION].scale == 0.25


def test_a_linear_layers_pair_may_be_saved_as_convolutions() -> None:
    pair = random_adapter([ATTENTION]).low_rank[ATTENTION]
    name = tiny_names().kohya(ATTENTION)
    tensors = {
        f"{name}.lora_down.weight": pair.down[:, :, None, None],
        f"{name}.lora_up.weight": pair.up[:, :, None, None],
    }
    assert torch.equal(read(tensors).low_rank[ATTENTION].down, pair.down)


def test_a_kernel_between_two_small_ones_is_the_same_change() -> None:
    """LoCon's `lora_mid`: up (1x1), mid (3x3), down (1x1), as one convolution after the other."""
    shape, name = tiny_names().shapes[CONVOLUTION], tiny_names().kohya(CONVOLUTION)
    down, mid, up = torch.randn(4, shape[1], 1, 1), torch.randn(4, 4, 3, 3), torch.randn(shape[0], 4, 1, 1)
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    pair = read({f"{name}.{role}": value for role, value in parts.items()}).low_rank[CONVOLUTION]
    image = torch.randn(1, shape[1], 8, 8)
    conv = torch.nn.functional.conv2d
    expected = conv(conv(conv(image, down), mid, padding=1), up)
    found = conv(conv(image, pair.down, padding=1), pair.up)
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(64,), (64, 1)])
def test_a_magnitude_is_one_number_per_output_however_it_was_saved(shape: tuple[int, ...]) -> None:
    pair = random_adapter([ENCODER_1], dora=True).low_rank[ENCODER_1]
    assert pair.magnitude is not None
    name = tiny_names().kohya(ENCODER_1)
    out = pair.magnitude.numel()
    stored = pair.magnitude.reshape(out, *[1] * (len(shape) - 1))
    tensors = kohya_tensors(Adapter({ENCODER_1: pair}), tiny_names()) | {f"{name}.dora_scale": stored}
    found = read(tensors).low_rank[ENCODER_1].magnitude
    assert found is not None
    assert torch.equal(found, pair.magnitude)


def test_other_kinds_keep_their_tensors() -> None:
    name = tiny_names().kohya(ATTENTION)
    out, width = tiny_names().shapes[ATTENTION]
    halves = {"a": torch.randn(out, 4), "b": torch.randn(4, width)}
    roles = {f"hada_w{one}_{half}": value for one in (1, 2) for half, value in halves.items()}
    found = read({f"{name}.{role}": value for role, value in roles.items()} | {f"{name}.alpha": torch.tensor(4.0)})
    change = found.layers[ATTENTION]
    assert isinstance(change, Lycoris)
    assert change.kind == "loha"
    assert set(change.tensors) == {*roles, "alpha"}


def test_tensors_that_fit_nowhere_are_named() -> None:
    tensors = kohya_tensors(random_adapter([ATTENTION]), tiny_names())
    strangers = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(1), "whatever": torch.zeros(1)}
    adapter, unused = read_adapter({**tensors, **strangers}, {}, tiny_names(), "x")
    assert list(adapter.layers) == [ATTENTION]
    assert unused == list(strangers)


def _kohya(layer: Layer = ATTENTION) -> Tensors:
    return kohya_tensors(random_adapter([layer]), tiny_names())


def _with(tensors: Tensors, role: str, value: Tensor | None) -> Tensors:
    name = next(name for name in tensors if name.endswith(role))
    rest = {key: kept for key, kept in tensors.items() if key != name}
    return rest if value is None else {**rest, name: value}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (lambda: _with(_kohya(), ".lora_up.weight", None), "one matrix of two"),
        (lambda: _with(_kohya(), ".lora_down.weight", None), "make no change"),
        (lambda: _with(_kohya(), ".alpha", torch.tensor(0.0)), "alpha 0"),
        (lambda: _with(_kohya(), ".alpha", torch.ones(4)), "one number"),
        (lambda: _with(_kohya(), ".lora_down.weight", torch.randn(4, 7)), "made for another model"),
        (lambda: _with(_kohya(), ".lora_up.weight", torch.full((128, 4), math.nan)), "NaN"),
        (
            lambda: (
                _kohya() | {f"{k}".replace("middle_block_1", "mid_block_attentions_0"): v for k, v in _kohya().items()}
            ),
            "twice",
        ),
    ],
)
def test_what_is_wrong_with_a_layer_is_one_line(tensors: Callable[[], Tensors], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        read_adapter(tensors(), {}, tiny_names(), "x.safetensors")
    assert "x.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_diffusers_format_refuses_what_it_cannot_hold() -> None:
    mixed = Adapter({**random_adapter([ATTENTION], dora=True).layers, **random_adapter([CONVOLUTION]).layers})
    with pytest.raises(UserError, match="in all layers"):
        diffusers_tensors(mixed)
    with pytest.raises(UserError, match="attention layers"):
        diffusers_tensors(random_adapter([MLP_2]))
    other = Adapter({ATTENTION: Lycoris("loha", {})})
    with pytest.raises(UserError, match="low-rank pairs only"):
        diffusers_tensors(other)
