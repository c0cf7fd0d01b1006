"""Adapters that PEFT cannot hold, drawn and served; and the same images by PEFT where it can hold them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lycoris import modules as lycoris
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import Base, LoraTuning
from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import PARTS, Adapter, Layer, LowRank
from sdxl_ray.formats.kohya import kohya_tensors
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.reading import read_adapter
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, Artifact, write_manifest
from sdxl_ray.models.base_model import component_configs, locate
from sdxl_ray.models.initial_weights import require_initial
from sdxl_ray.models.lora_artifact import write_lora_artifact
from sdxl_ray.models.pipeline import generate, load_pipeline
from sdxl_ray.models.weight_changes import apply_adapter
from serve.engine.engine import ServingEngine
from serve.engine.request import ImageRequest
from serve.engine.settings import EngineSettings

FILES = locate(Base())
NAMES = LayerNames.of(component_configs(FILES))
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
#: Layers of all parts, and the kind of each.
LAYERS: dict[Layer, Any] = {
    Layer("unet", ATTENTION): lambda of: lycoris.LohaModule("x", of, lora_dim=3, alpha=2),
    Layer("unet", "mid_block.resnets.0.conv1"): lambda of: lycoris.LokrModule("x", of, lora_dim=3, alpha=2, factor=4),
    Layer("unet", "mid_block.resnets.0.norm1"): lambda of: lycoris.NormModule("x", of),
    Layer("unet", "conv_in"): lambda of: lycoris.LoConModule("x", of, lora_dim=3, alpha=2, weight_decompose=True),
    Layer("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj"): lambda of: lycoris.DiagOFTModule(
        "x", of, lora_dim=4
    ),
    Layer("text_encoder_2", "text_model.encoder.layers.0.self_attn.out_proj"): lambda of: lycoris.GLoRAModule(
        "x", of, lora_dim=2
    ),
}


def _pipe(artifact: Artifact | None = None) -> Any:
    return load_pipeline(Base(), artifact, dtype=torch.float32, device="cpu")


def _draw(pipe: Any) -> np.ndarray:
    image: Image.Image = generate(pipe, ["a dog"], seeds=[1], num_inference_steps=2, guidance_scale=5.0)[0]
    return np.asarray(image, np.int16)


def _module(pipe: Any, layer: Layer) -> Any:
    modules = dict(getattr(pipe, layer.part).named_modules())
    return modules.get(layer.module) or modules[layer.module.removeprefix("text_model.")]


def _artifact(folder: Path, adapter: Adapter) -> Artifact:
    return write_lora_artifact(folder, adapter, NAMES, FILES, Recipe(), origin={"command": "import"})


@pytest.fixture(scope="module")
def base() -> np.ndarray:
    return _draw(_pipe())


@pytest.fixture(scope="module")
def drawn_by_lycoris(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, np.ndarray]:
    """An artifact of many kinds, and what a pipeline draws in which `lycoris-lora` computes its layers."""
    pipe, tensors = _pipe(), dict[str, Tensor]()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for layer, make in LAYERS.items():
            module = make(_module(pipe, layer))
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            tensors |= {f"{NAMES.kohya(layer)}.{role}": value.clone() for role, value in module.state_dict().items()}
            module.apply_to()
    adapter, unused = read_adapter(tensors, {}, NAMES, "file")
    assert not unused
    return _artifact(tmp_path_factory.mktemp("lycoris") / "artifact", adapter), _draw(pipe)


def _pairs(dora: Mapping[Layer, bool]) -> Adapter:
    generator = torch.Generator().manual_seed(0)

    def pair(shape: tuple[int, ...], dora: bool) -> LowRank:
        down = torch.randn(3, *shape[1:], generator=generator) / shape[1] ** 0.5
        up = torch.randn(shape[0], 3, *[1] * (len(shape) - 2), generator=generator)
        magnitude = 1 + torch.rand(shape[0], generator=generator) if dora else None
        return LowRank(down, up, 1.5, magnitude)

    return Adapter({layer: pair(NAMES.shapes[layer], own) for layer, own in dora.items()})


_PAIRED = [layer for layer in LAYERS if len(NAMES.shapes[layer]) > 1]


def test_lycoris_kinds_draw_as_their_own_library_does(
    drawn_by_lycoris: tuple[Artifact, np.ndarray], base: np.ndarray
) -> None:
    artifact, expected = drawn_by_lycoris
    assert artifact.in_kohya_alone
    assert np.abs(_draw(_pipe(artifact)) - expected).max() <= 1
    assert np.abs(base - expected).max() > 20


@pytest.mark.parametrize("dora", [False, True])
def test_weights_draw_what_peft_draws(tmp_path: Path, base: np.ndarray, dora: bool) -> None:
    adapter = _pairs(dict.fromkeys(_PAIRED, dora))
    artifact = _artifact(tmp_path / "artifact", adapter)
    assert not artifact.in_kohya_alone
    pipe = _pipe()
    apply_adapter({part: getattr(pipe, part) for part in PARTS}, adapter, "adapter")
    expected = _draw(_pipe(artifact))
    assert np.abs(_draw(pipe) - expected).max() <= 1
    assert np.abs(base - expected).max() > 20


def test_dora_in_some_layers_draws_as_the_layers_alone(tmp_path: Path) -> None:
    """PEFT has DoRA for all layers of a part or for none: one half of the expected image is its own, the other ours."""
    halves = [_PAIRED[:1], _PAIRED[1:]]
    whole = _pairs({layer: layer in halves[0] for layer in _PAIRED})
    artifact = _artifact(tmp_path / "mixed", whole)
    assert artifact.in_kohya_alone
    plain = Adapter({layer: whole.layers[layer] for layer in halves[1]})
    pipe = _pipe(_artifact(tmp_path / "plain", plain))
    apply_adapter(
        {part: getattr(pipe, part) for part in PARTS}, Adapter({halves[0][0]: whole.layers[halves[0][0]]}), ""
    )
    assert np.abs(_draw(_pipe(artifact)) - _draw(pipe)).max() <= 1


def test_strength_scales_a_change() -> None:
    adapter = _pairs(dict.fromkeys(_PAIRED, False))
    pipe = _pipe()
    models = {part: getattr(pipe, part) for part in PARTS}
    weight = models["unet"].get_submodule(ATTENTION).weight
    before = weight.clone()
    apply_adapter(models, adapter, "adapter", strength=0.5)
    half = weight - before
    apply_adapter(models, adapter, "adapter", strength=-0.5)
    pair = adapter.low_rank[Layer("unet", ATTENTION)]
    torch.testing.assert_close(half, 0.5 * pair.scale * pair.up @ pair.down, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight, before, rtol=1e-4, atol=1e-5)


def test_a_bias_that_the_layer_has_not_is_one_line_and_changes_nothing() -> None:
    pipe, layer = _pipe(), Layer("unet", ATTENTION)
    name = NAMES.kohya(layer)
    shape = NAMES.shapes[layer]
    adapter, _ = read_adapter(
        {f"{name}.diff": torch.ones(shape), f"{name}.diff_b": torch.ones(shape[0])}, {}, NAMES, ""
    )
    before = _module(pipe, layer).weight.clone()
    with pytest.raises(UserError, match=f"changes the bias of unet {ATTENTION}, which has none"):
        apply_adapter({"unet": pipe.unet}, adapter, "dog.safetensors")
    assert torch.equal(_module(pipe, layer).weight, before)


def test_tensors_that_fit_no_layer_are_refused(drawn_by_lycoris: tuple[Artifact, np.ndarray], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(drawn_by_lycoris[0].folder, tmp_path / "artifact"))
    adapter = _pairs({_PAIRED[0]: False})
    save_file(kohya_tensors(adapter, NAMES) | {"lora_unet_nowhere.diff": torch.ones(1)}, folder / KOHYA_WEIGHTS)
    artifact = write_manifest(
        folder, kind="lora", recipe={}, recipe_identity="", base_id="tiny", base_revision=FILES.revision, step=0
    )
    with pytest.raises(UserError, match="has 1 tensors that fit no layer, as lora_unet_nowhere"):
        _pipe(artifact)


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    artifact = _artifact(tmp_path / "artifact", _pairs({_PAIRED[0]: False}))
    for name in (LORA_WEIGHTS, KOHYA_WEIGHTS):
        (artifact.folder / name).unlink()
    bare = write_manifest(
        artifact.folder,
        kind="lora",
        recipe={},
        recipe_identity="",
        base_id="tiny",
        base_revision=FILES.revision,
        step=0,
    )
    with pytest.raises(UserError, match=f"holds no {LORA_WEIGHTS}"):
        _pipe(bare)


def test_no_recipe_starts_from_it(drawn_by_lycoris: tuple[Artifact, np.ndarray]) -> None:
    recipe = Recipe(tuning=LoraTuning(init=str(drawn_by_lycoris[0].folder)))
    with pytest.raises(UserError, match="and no recipe trains it: give a plain LoRA"):
        require_initial(recipe, FILES)


def test_it_is_served_in_the_weights_alone(drawn_by_lycoris: tuple[Artifact, np.ndarray]) -> None:
    artifact, expected = drawn_by_lycoris
    settings = EngineSettings(device="cpu", dtype="fp32")
    with pytest.raises(UserError, match="cannot share a batch: fuse it into a variant of its own"):
        ServingEngine(Base(), adapters={"loha": artifact}, settings=settings)

    async def main() -> None:
        engine = ServingEngine(Base(), adapters={"loha": artifact}, settings=settings, fuse="loha")
        await engine.start()
        try:
            drawn = await engine.draw(ImageRequest("a dog", 1, num_inference_steps=2, guidance_scale=5.0))
        finally:
            await engine.stop()
        assert np.abs(np.asarray(drawn.image, np.int16) - expected).max() <= 1

    asyncio.run(main())
