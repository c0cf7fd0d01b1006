"""LyCORIS' kinds: files that `lycoris-lora` writes change weights here as its own layers do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from lycoris import modules as lycoris
from torch import Tensor, nn
from torch.nn import functional as F

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Layer, LowRank, Lycoris
from sdxl_ray.formats.kohya import kohya_tensors
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.lycoris import changed_bias, changed_weight
from sdxl_ray.formats.reading import read_adapter
from sdxl_ray.models.base_model import component_configs, locate
from sdxl_ray.tiny import shipped

LINEAR = Layer("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v")
CONV = Layer("unet", "mid_block.resnets.0.conv1")
NORM = Layer("unet", "mid_block.resnets.0.norm1")
Write = Callable[[nn.Module], Any]


def _applied(module: Any) -> Any:
    module.apply_to()  # before that, its state_dict subtracts the weight from the difference
    return module


#: What makes a layer of each kind, in each form that its files have.
KINDS: dict[str, Write] = {
    "loha": lambda of: lycoris.LohaModule("x", of, lora_dim=3, alpha=2),
    "loha, tucker": lambda of: lycoris.LohaModule("x", of, lora_dim=3, alpha=2, use_tucker=True),
    "loha, dora": lambda of: lycoris.LohaModule("x", of, lora_dim=3, alpha=2, weight_decompose=True),
    "lokr": lambda of: lycoris.LokrModule("x", of, lora_dim=3, alpha=2, factor=4),
    "lokr, both in factors": lambda of: lycoris.LokrModule("x", of, lora_dim=2, alpha=3, decompose_both=True),
    "lokr, both whole": lambda of: lycoris.LokrModule("x", of, lora_dim=9, alpha=2, factor=4, full_matrix=True),
    "lokr, tucker": lambda of: lycoris.LokrModule("x", of, lora_dim=3, alpha=2, factor=4, use_tucker=True),
    "lokr, dora": lambda of: lycoris.LokrModule("x", of, lora_dim=3, alpha=2, factor=4, weight_decompose=True),
    "glora": lambda of: lycoris.GLoRAModule("x", of, lora_dim=3, alpha=2),
    "oft": lambda of: lycoris.DiagOFTModule("x", of, lora_dim=4),
    "oft, limited and rescaled": lambda of: lycoris.DiagOFTModule("x", of, lora_dim=4, constraint=1e-3, rescaled=True),
    "boft": lambda of: lycoris.ButterflyOFTModule("x", of, lora_dim=4),
    "boft, limited and rescaled": lambda of: lycoris.ButterflyOFTModule(
        "x", of, lora_dim=4, constraint=1e-3, rescaled=True
    ),
    "full": lambda of: _applied(lycoris.FullModule("x", of)),
    "locon": lambda of: lycoris.LoConModule("x", of, lora_dim=3, alpha=2),
    "locon, tucker and dora": lambda of: lycoris.LoConModule(
        "x", of, lora_dim=3, alpha=2, use_tucker=True, weight_decompose=True
    ),
    "locon, dora by input": lambda of: lycoris.LoConModule(
        "x", of, lora_dim=3, alpha=2, weight_decompose=True, wd_on_out=False
    ),
}


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return UNet2DConditionModel.from_pretrained(shipped.BASE / "unet").requires_grad_(False)


@pytest.fixture(scope="module")
def names() -> LayerNames:
    return LayerNames.of(component_configs(locate(Base())))


def _written(write: Write, of: nn.Module) -> tuple[Any, dict[str, Tensor]]:
    """A layer of `lycoris-lora` with random weights, and what it saves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = write(copy.deepcopy(of))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return module, {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _read(tensors: Mapping[str, Tensor], layer: Layer, names: LayerNames) -> LowRank | Lycoris:
    named = {f"{names.kohya(layer)}.{role}": tensor for role, tensor in tensors.items()}
    adapter, unused = read_adapter(named, {}, names, "file")
    assert not unused
    again, unused = read_adapter(kohya_tensors(adapter, names), {}, names, "written again")
    assert not unused
    assert kohya_tensors(again, names).keys() == kohya_tensors(adapter, names).keys()
    return again.layers[layer]


def _apply(of: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(of, nn.Conv2d):
        return F.conv2d(x, weight, bias, of.stride, of.padding)
    return F.linear(x, weight, bias)


@pytest.mark.parametrize("layer", [LINEAR, CONV], ids=["linear", "convolution"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_what_lycoris_computes(kind: str, layer: Layer, unet: nn.Module, names: LayerNames) -> None:
    of = unet.get_submodule(layer.module)
    theirs, tensors = _written(KINDS[kind], of)
    change = _read(tensors, layer, names)
    weight, bias = changed_weight(change, of.weight), changed_bias(change, of.bias)
    x = torch.randn(4, of.weight.shape[1], *[8, 8][: 2 * (layer is CONV)], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(x)
    assert (expected - of(x)).abs().max() > 1e-2  # it does change something
    torch.testing.assert_close(
        _apply(of, x, weight, bias), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )


def test_norms_change_as_lycoris_changes_them(unet: nn.Module, names: LayerNames) -> None:
    of = unet.get_submodule(NORM.module)
    theirs, tensors = _written(lambda norm: lycoris.NormModule("x", norm), of)
    change = _read(tensors, NORM, names)
    weight, bias = theirs.get_merged_weight()
    torch.testing.assert_close(changed_weight(change, of.weight), weight)
    torch.testing.assert_close(changed_bias(change, of.bias), bias)


def test_strength_lies_between_the_weights(unet: nn.Module, names: LayerNames) -> None:
    of = unet.get_submodule(CONV.module)
    _, tensors = _written(KINDS["full"], of)
    change = _read(tensors, CONV, names)
    torch.testing.assert_close(changed_weight(change, of.weight, 0.25), of.weight + 0.25 * tensors["diff"])
    torch.testing.assert_close(changed_bias(change, of.bias, 0.25), of.bias + 0.25 * tensors["diff_b"])
    torch.testing.assert_close(changed_weight(change, of.weight, 0.0), of.weight)


def test_a_pair_may_come_with_a_change_of_the_bias(unet: nn.Module, names: LayerNames) -> None:
    of = unet.get_submodule(CONV.module)
    _, tensors = _written(KINDS["locon"], of)
    difference = torch.arange(float(of.bias.numel()))
    change = _read(tensors | {"diff_b": difference}, CONV, names)
    plain = _read(tensors, CONV, names)
    torch.testing.assert_close(changed_weight(change, of.weight), changed_weight(plain, of.weight))
    torch.testing.assert_close(changed_bias(change, of.bias), of.bias + difference)


def _loha(**changes: Any) -> dict[str, Any]:
    tensors: dict[str, Any] = {f"hada_w{n}_{half}": torch.ones(128, 2) for n in (1, 2) for half in "ab"}
    tensors |= {f"hada_w{n}_b": torch.ones(2, 192) for n in (1, 2)}
    return tensors | {"alpha": torch.tensor(2.0)} | changes


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_loha(hada_w1_b=torch.ones(2, 7)), r"hada_w1_b \[2, 7\].* do not fit the base's layer \[128, 192\]"),
        (_loha(alpha=torch.tensor(0.0)), "has alpha 0, .* set it to 2 "),
        (_loha(alpha=torch.ones(2)), r"alpha of shape \[2\]"),
        (_loha(dora_scale=torch.ones(7, 1)), r"dora_scale \[7, 1\].* do not fit"),
        ({"hada_w1_a": torch.ones(128, 2)}, r"\(loha\) lacks hada_w1_b: the file is incomplete"),
        ({"lokr_w1": torch.ones(4, 4)}, r"\(lokr\) lacks lokr_w2 or lokr_w2_a"),
        ({"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(48, 32)}, "do not fit"),
        ({"oft_blocks": torch.ones(3, 4, 4)}, r"\(oft\) has oft_blocks \[3, 4, 4\], which do not fit"),
        ({"oft_blocks": torch.ones(2, 3, 4, 4)}, r"\(boft\) has .* do not fit"),
        ({"oft_blocks": torch.zeros(32, 4, 4), "rescale": torch.ones(1)}, r"rescale \[1\].* do not fit"),
        ({"diff": torch.ones(1)}, r"\(full\) has diff \[1\], which do not fit"),
        ({"diff": torch.ones(128, 192), "diff_b": torch.ones(1)}, r"diff_b \[1\], which do not fit"),
        ({"weight": torch.ones(128), "on_input": torch.tensor(1)}, "is IA3"),
        ({"rescale": torch.ones(128, 1)}, "lacks oft_blocks"),
        (_loha(diff=torch.ones(128, 192)), "has only alpha, diff, "),
    ],
)
def test_what_does_not_fit_is_one_line(tensors: dict[str, Tensor], message: str, names: LayerNames) -> None:
    assert names.shapes[LINEAR] == (128, 192)
    with pytest.raises(UserError, match=message):
        read_adapter({f"{names.kohya(LINEAR)}.{role}": t for role, t in tensors.items()}, {}, names, "file")
