"""A whole model as one file: read back by diffusers, and named as the released SDXL checkpoint is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats import single_file
from sdxl_ray.formats.hashes import file_hashes
from sdxl_ray.formats.single_file import write_single_file
from sdxl_ray.io.safetensors_files import read_metadata
from sdxl_ray.models.base_model import load_components, locate
from sdxl_ray.models.pipeline import generate, load_pipeline
from sdxl_ray.plan.architecture import sdxl_configs
from tests.models.single_file import write_single_file as write_by_hand

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def single(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    write_single_file(embedded, file, metadata={"modelspec.title": "tiny"})
    return file


def test_folder_to_file_to_folder_gives_identical_tensors(single: Path, embedded: Path, tmp_path: Path) -> None:
    base = Base(id=str(single), config=str(embedded))
    parts = load_components(locate(base), base, dtype=torch.float16, device="cpu")
    parts.pipeline().save_pretrained(tmp_path)
    for part in PARTS:
        name = "model.safetensors" if part.startswith("text") else "diffusion_pytorch_model.safetensors"
        ours = {n.removeprefix("text_model."): v for n, v in load_file(embedded / part / name).items()}
        back = {n.removeprefix("text_model."): v for n, v in load_file(tmp_path / part / name).items()}
        assert back.keys() == ours.keys()
        assert all(torch.equal(back[n].half(), ours[n].half()) for n in ours)


def test_the_file_draws_what_the_folder_draws(single: Path, embedded: Path) -> None:
    def drawn(base: Base) -> np.ndarray:
        pipe = load_pipeline(base, None, dtype=torch.float32, device="cpu")
        image = generate(pipe, ["a photo of a robot"], seeds=[0], num_inference_steps=2, guidance_scale=4.0)[0]
        return np.asarray(image)

    assert np.array_equal(drawn(Base(id=str(single), config=str(embedded))), drawn(Base(id="tiny")))


def test_the_tensors_are_those_of_another_way_to_write_them(single: Path, embedded: Path, tmp_path: Path) -> None:
    """A writer of the tests, by tables that are typed for the embedded base."""
    write_by_hand(embedded, tmp_path / "hand.safetensors")
    ours, hand = load_file(single), load_file(tmp_path / "hand.safetensors")
    more = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.1.model.logit_scale",
    }
    assert ours.keys() - hand.keys() == more
    assert not hand.keys() - ours.keys()
    assert all(torch.equal(ours[name], hand[name]) for name in hand if ".attn_1." not in name)


def test_the_content_hash_is_that_of_the_file(single: Path) -> None:
    assert read_metadata(single, "x")["modelspec.hash_sha256"] == f"0x{file_hashes(single).content}"


def test_precision_changes_weights_but_no_ids(embedded: Path, tmp_path: Path) -> None:
    write_single_file(embedded, tmp_path / "x.safetensors", metadata={}, dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "x.safetensors")
    ids = [name for name in tensors if name.endswith("position_ids")]
    assert tensors[ids[0]].dtype == torch.int64
    assert {value.dtype for name, value in tensors.items() if name not in ids} == {torch.bfloat16}


@pytest.mark.parametrize(("zero", "expected"), [(False, {"v_pred"}), (True, {"v_pred", "ztsnr"})])
def test_v_prediction_is_marked_and_found_again(zero: bool, expected: set[str], embedded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded, folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero}
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), **changes}))
    file = tmp_path / "v.safetensors"
    write_single_file(folder, file, metadata={})
    assert {"v_pred", "ztsnr"} & load_file(file).keys() == expected
    base = Base(id=str(file), config=str(embedded))
    config = load_components(locate(base), base, dtype=torch.float32, device="cpu").scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr == zero


def test_a_stranger_among_the_weights_is_named_and_nothing_is_written(embedded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "adapter.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"adapter\.weight"):
        write_single_file(folder, tmp_path / "x.safetensors", metadata={})
    assert not (tmp_path / "x.safetensors").exists()


def test_a_number_beyond_the_precision_is_no_infinity(embedded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded, folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = {name: value.float() for name, value in load_file(file).items()}
    weights["decoder.conv_in.bias"][0] = 1e6
    save_file(weights, file)
    with pytest.raises(UserError, match=r"decoder\.conv_in\.bias holds 1e\+06"):
        write_single_file(folder, tmp_path / "x.safetensors", metadata={}, dtype=torch.float16)
    assert not (tmp_path / "x.safetensors").exists()


def test_sdxls_own_shape_has_the_released_checkpoints_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released file has 2,515 tensors; ours has as many, from the configs alone and models without data."""
    names: list[str] = []
    monkeypatch.setattr(single_file, "write_tensors", lambda path, entries, *_: names.extend(e.name for e in entries))
    monkeypatch.setattr(single_file, "_Weights", _Described)
    for part, config in {**sdxl_configs(), "scheduler": {}}.items():
        (tmp_path / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (tmp_path / part / name).write_text(json.dumps(config))
    write_single_file(tmp_path, tmp_path / "x.safetensors", metadata={})
    assert len(names) == len(set(names)) == 2515
    assert {
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_out.0.bias",
        "model.diffusion_model.output_blocks.8.0.skip_connection.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc2.bias",
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.logit_scale",
    } <= set(names)


class _Described(dict[str, tuple[int, ...]]):
    """The weights of a part of SDXL, from its config: names and shapes of a model on the meta device."""

    def __init__(self, folder: Path, _: object) -> None:
        import diffusers
        import transformers

        self.folder = folder
        config = json.loads((folder / "config.json").read_text())
        with torch.device("meta"):
            if folder.name == "unet":
                model = diffusers.UNet2DConditionModel.from_config(config)
            elif folder.name == "vae":
                model = diffusers.AutoencoderKL.from_config(config)
            else:
                kind = transformers.CLIPTextModelWithProjection if "2" in folder.name else transformers.CLIPTextModel
                model = kind(transformers.CLIPTextConfig(**config))
        super().__init__({name: tuple(value.shape) for name, value in model.state_dict().items()})

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name]

    def entry(self, name: str, target: str) -> single_file.Entry:
        return single_file.Entry(target, torch.float16, self[name], lambda: torch.empty(0))
