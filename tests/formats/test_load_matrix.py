"""Each verdict of the load matrix (`load_matrix.py`) that can be proven with what is installed, or by a key map."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdxl_ray.config.schema import Base
from sdxl_ray.formats.adapter import Adapter, Layer, LowRank
from sdxl_ray.formats.diffusers_lora import diffusers_tensors
from sdxl_ray.formats.kohya import kohya_tensors
from sdxl_ray.io.safetensors_files import read_header
from sdxl_ray.models.pipeline import load_pipeline
from tests.formats.adapters import tiny_names
from tests.formats.load_matrix import ADAPTERS, MISREAD, table
from tests.models.single_file import write_single_file

TINY = Base(id="tiny")
Weights = dict[Layer, Tensor]


def expected(weight: Tensor, pair: LowRank) -> Tensor:
    """The weight that an adapter makes, by the papers' formulas."""
    changed = weight + pair.scale * (pair.up.flatten(1) @ pair.down.flatten(1)).reshape(weight.shape)
    if pair.magnitude is None:
        return changed
    column = (-1, *[1] * (weight.dim() - 1))
    return changed * (pair.magnitude / changed.flatten(1).norm(dim=1)).reshape(column)


def weights(pipe: object, layers: list[Layer]) -> Weights:
    found = {}
    for layer in layers:
        modules = dict(getattr(pipe, layer.part).named_modules())
        module = modules.get(layer.module) or modules[layer.module.removeprefix("text_model.")]
        found[layer] = getattr(module, "base_layer", module).weight.detach().clone()
    return found


def fused(file: Path, layers: list[Layer]) -> tuple[Weights, Weights]:
    """The base's weights, and those after diffusers has loaded and fused the file."""
    pipe = load_pipeline(TINY, None, dtype=torch.float32, device="cpu")
    before = weights(pipe, layers)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="x")
    pipe.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"])
    return before, weights(pipe, layers)


def _diffusers(adapter: Adapter, file: Path) -> None:
    tensors, metadata = diffusers_tensors(adapter)
    save_file(tensors, file, metadata)


def _kohya(adapter: Adapter, file: Path) -> None:
    save_file(kohya_tensors(adapter, tiny_names()), file)


def differences(adapter: Adapter, file: Path) -> dict[Layer, float]:
    """How far each layer is from what the adapter means; every layer must have changed."""
    before, after = fused(file, list(adapter.layers))
    for layer in adapter.layers:
        assert not torch.allclose(after[layer], before[layer], atol=1e-2), layer
    return {
        layer: float((after[layer] - expected(before[layer], pair)).abs().max())
        for layer, pair in adapter.low_rank.items()
    }


@pytest.mark.parametrize("what", ADAPTERS)
def test_diffusers_gets_the_weights_that_its_file_means(what: str, tmp_path: Path) -> None:
    adapter, file = ADAPTERS[what](), tmp_path / "x.safetensors"
    tensors, metadata = diffusers_tensors(adapter)
    save_file(tensors, file, metadata)
    assert max(differences(adapter, file).values()) < 1e-5


@pytest.mark.parametrize("what", ADAPTERS)
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")
def test_diffusers_gets_the_weights_that_kohyas_file_means_but_for_what_it_misreads(what: str, tmp_path: Path) -> None:
    adapter, file = ADAPTERS[what](), tmp_path / "x.safetensors"
    save_file(kohya_tensors(adapter, tiny_names()), file)
    worst = max(differences(adapter, file).values())
    assert (worst > 1e-2) if what in MISREAD else (worst < 1e-5)


@pytest.fixture(scope="module")
def known(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Module names that ComfyUI and kohya's scripts look for: `lora_unet_` and the checkpoint's own names, `lora_te1_`
    and `lora_te2_` with Hugging Face's. Made from the keys of a single file, not from the table that writes ours."""
    file = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    write_single_file(embedded, file)
    heads = {"model.diffusion_model.": "lora_unet_", "conditioner.embedders.0.transformer.": "lora_te1_"}
    found = set()
    for key in read_header(file, "tiny"):
        for head, prefix in heads.items():
            if key.startswith(head) and key.endswith(".weight"):
                found.add(prefix + key.removeprefix(head).removesuffix(".weight").replace(".", "_"))
    layers = [f"self_attn_{name}_proj" for name in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]
    return found | {f"lora_te2_text_model_encoder_layers_{n}_{layer}" for n in range(4) for layer in layers}


@pytest.mark.parametrize("what", ADAPTERS)
def test_comfyui_kohya_and_a1111_place_every_tensor_at_full_strength(what: str, known: set[str]) -> None:
    """Their rule: the part before the first dot is the module, strength is alpha / rows of lora_down."""
    adapter = ADAPTERS[what]()
    tensors = kohya_tensors(adapter, tiny_names())
    modules = {name.partition(".")[0] for name in tensors}
    assert modules <= known
    assert len(modules) == len(adapter.layers)
    for layer, pair in adapter.low_rank.items():
        name = tiny_names().kohya(layer)
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        scale = float(tensors[f"{name}.alpha"]) / down.shape[0]
        product = scale * (up.flatten(1) @ down.flatten(1))
        assert torch.allclose(product, pair.scale * (pair.up.flatten(1) @ pair.down.flatten(1)), atol=1e-6)
        assert up.shape[2:] == torch.Size([1] * (up.dim() - 2))


def test_the_docs_have_the_matrix_as_it_is_tested() -> None:
    assert table() in (resources.files("sdxl_ray") / "docs" / "formats.md").read_text(encoding="utf-8")
