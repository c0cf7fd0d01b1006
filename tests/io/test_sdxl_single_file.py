"""Which single files the shipped configs of SDXL describe, by a header alone, and that they are complete."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats import sgm_names
from sdxl_ray.io.sdxl_single_file import CONFIGS, require_sdxl_shapes
from sdxl_ray.models.base_model import load_tokenizers
from sdxl_ray.models.base_model_files import check_folder, component_configs, locate
from sdxl_ray.plan import Plan, architecture
from tests.models.single_file import write_single_file
from tests.plan.known import recipe

CAT = [49406, 320, 1125, 539, 320, 2368, 49407]
LAYER = "model.diffusion_model.middle_block.1.transformer_blocks.9."


@pytest.fixture(scope="module")
def header() -> dict[str, Any]:
    """Names and shapes of SDXL base 1.0's linear layers and convolutions, in SGM names; of encoder 2 its layers."""
    configs = architecture.sdxl_configs()
    names = {
        "unet": ("model.diffusion_model.", sgm_names.unet(configs["unet"]).to_sgm),
        "vae": ("first_stage_model.", sgm_names.vae(configs["vae"]).to_sgm),
        "text_encoder": ("conditioner.embedders.0.transformer.text_model.", lambda n: n.removeprefix("text_model.")),
    }
    found = {}
    for part, (prefix, rename) in names.items():
        for layer in architecture.profile(configs).components[part].layers:
            side = round(layer.kernel**0.5)
            shape = [layer.outputs, layer.inputs, *([side, side] if side > 1 else [])]
            for name in layer.names:
                assert rename(name) is not None, name
                found[f"{prefix}{rename(name)}.weight"] = shape
    for number in range(32):
        found[f"conditioner.embedders.1.model.transformer.resblocks.{number}.mlp.c_fc.weight"] = [5120, 1280]
    return {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in found.items()}


def write(header: dict[str, Any], file: Path) -> str:
    """A file with this header and no numbers."""
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    return str(file)


def test_a_file_of_sdxl_needs_no_configs_and_no_hub(header: dict[str, Any], tmp_path: Path) -> None:
    base = Base(id=write(header, tmp_path / "xl.safetensors"))
    files = locate(base)
    assert (files.kind, files.config) == ("file", CONFIGS)
    scheduler = component_configs(files)["scheduler"]
    assert (scheduler["prediction_type"], scheduler["timestep_spacing"]) == ("epsilon", "leading")
    one, two = load_tokenizers(files)
    assert one("a photo of a cat").input_ids == two("a photo of a cat").input_ids == CAT
    padded = {"padding": "max_length", "max_length": 9}
    assert one("a photo of a cat", **padded).input_ids == [*CAT, 49407, 49407]
    assert two("a photo of a cat", **padded).input_ids == [*CAT, 0, 0]
    assert one("Hello  world!").input_ids == [49406, 3306, 1002, 256, 49407]
    planned = Plan.of(recipe(base=base.model_dump()), "h100")
    assert planned.architecture.assumption is None


def test_a_v_prediction_file_is_known_by_its_marker(header: dict[str, Any], tmp_path: Path) -> None:
    marker = {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
    base = Base(id=write({**header, "v_pred": marker, "ztsnr": marker}, tmp_path / "v.safetensors"))
    scheduler = component_configs(locate(base))["scheduler"]
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)


def test_inpainting_and_the_refiner_are_refused_by_name(header: dict[str, Any], tmp_path: Path) -> None:
    stem = "model.diffusion_model.input_blocks.0.0.weight"
    inpainting = {**header, stem: {**header[stem], "shape": [320, 9, 3, 3]}}
    label = "model.diffusion_model.label_emb.0.0.weight"
    refiner = {label: header[label], "conditioner.embedders.0.model.token_embedding.weight": header[label]}
    for name, content in (("an inpainting", inpainting), ("the SDXL refiner", refiner)):
        with pytest.raises(UserError, match=name):
            locate(Base(id=write(content, tmp_path / "x.safetensors")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (lambda h: {n: v for n, v in h.items() if not n.startswith(LAYER)}, "transformer_blocks has 9 layers, not 10"),
        (lambda h: {**h, "edm_mean": {}}, "Playground v2.5"),
        (
            lambda h: {**h, "model.diffusion_model.label_emb.0.0.weight": {"shape": [1280, 2560]}},
            r"shape \[1280, 2560\], not \[1280, 2816\]",
        ),
        (lambda h: {n: v for n, v in h.items() if "resblocks.31." not in n}, "resblocks has 31 layers, not 32"),
    ],
)
def test_other_layers_need_configs_of_their_own(header: dict[str, Any], changes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        require_sdxl_shapes(changes(header), "x.safetensors")
    assert "set base.config=FOLDER" in str(caught.value)


def test_the_embedded_base_as_a_file_is_not_taken_for_sdxl(embedded: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    write_single_file(embedded, file)
    for refused in (locate, lambda base: Plan.of(recipe(base=base.model_dump()), "h100")):
        with pytest.raises(UserError, match=r"do not describe this one .*: set base\.config=FOLDER"):
            refused(Base(id=str(file)))
    assert locate(Base(id=str(file), config=str(embedded))).config == embedded


def test_the_shipped_configs_are_complete() -> None:
    check_folder(CONFIGS, "SDXL", weights=False)
    assert architecture.profile(architecture.sdxl_configs()).name == architecture.SDXL
