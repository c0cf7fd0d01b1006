"""A base that is damaged, incomplete or no SDXL: one line with what it is, the part or tensor, and the fix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.models import base_model
from sdxl_ray.models.pipeline import load_pipeline
from tests.models.single_file import write_single_file

UNET = "diffusion_pytorch_model.safetensors"
FILES = {"unet": UNET, "vae": UNET, "text_encoder": "model.safetensors", "text_encoder_2": "model.safetensors"}
VALUES = (float("nan"), float("inf"), float("-inf"), float("nan"))
#: As long as a real one.
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5135149760\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>...</body></html>"


@pytest.fixture
def folder(tmp_path: Path, embedded: Path) -> Path:
    """A copy of the embedded base that a test may break."""
    return Path(shutil.copytree(embedded, tmp_path / "base"))


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _refused(base: Base) -> str:
    with pytest.raises(UserError) as caught:
        base_model.load_components(base_model.locate(base), base, dtype=torch.float32, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


def _spoil(file: Path, value: float) -> str:
    """Put one number that is none into a tensor of a file; the tensor's name."""
    weights = load_file(file)
    name = sorted(name for name in weights if weights[name].is_floating_point())[3]
    weights[name].view(-1)[1] = value
    save_file(weights, file, {"format": "pt"})
    return name


@pytest.mark.parametrize(("part", "value"), [*zip(FILES, VALUES, strict=True)])
def test_a_weight_that_is_no_number_is_named_with_its_file(folder: Path, part: str, value: float) -> None:
    name = _spoil(folder / part / FILES[part], value)
    said = _refused(Base(id=str(folder)))
    # In memory a layer's name may lack the wrapper that files have.
    names = {name, name.removeprefix("text_model.")}
    assert any(f"{part}/{FILES[part]} has NaN or infinity in {one} (1 of " in said for one in names)
    assert "is damaged" in said
    assert "lower optim.lr" not in said
    with pytest.raises(UserError, match="is damaged"):  # as generate, evaluate and serve load it
        load_pipeline(Base(id=str(folder)), None, dtype=torch.bfloat16, device="cpu")


def test_a_spoilt_vae_of_its_own_and_a_single_file_are_named(folder: Path, tmp_path: Path, embedded: Path) -> None:
    name = _spoil(folder / "vae" / UNET, float("nan"))
    base = Base(vae=str(folder / "vae"))
    assert f"base.vae '{folder / 'vae'}' is damaged: vae/{UNET} has NaN or infinity in {name}" in _refused(base)
    with pytest.raises(UserError, match=r"base\.vae .* is damaged"):
        base_model.load_vae(base_model.locate(base), base, device="cpu")
    file = tmp_path / "tiny.safetensors"
    write_single_file(embedded, file)
    weights = load_file(file)
    weights["first_stage_model.decoder.conv_in.weight"].view(-1)[0] = float("inf")
    save_file(weights, file)
    said = _refused(Base(id=str(file), config=str(embedded)))
    assert "its vae is damaged" in said
    assert "tiny.safetensors has NaN or infinity in decoder.conv_in.weight" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, " but a Git LFS pointer: run git lfs pull"),
        (PAGE, " but a web page: download it again"),
        (b"\n  <html>", " but a web page"),
        (b"", ", it is empty: copy or download it again"),
        (b"PK\x03\x04" + b"\0" * 60, " but a pickle with another suffix"),
        (b"GGUF\x03\0\0\0" + b"\0" * 60, " but GGUF"),
        (b"Entry not found", " but text ('Entry not found')"),
    ],
)
def test_what_was_saved_in_place_of_weights_or_a_config_is_named(folder: Path, content: bytes, said: str) -> None:
    for part, file in FILES.items():
        kept = (folder / part / file).read_bytes()
        (folder / part / file).write_bytes(content)
        assert f"{part}: {file} is not a safetensors file{said}" in _refused(Base(id=str(folder)))
        (folder / part / file).write_bytes(kept)
    (folder / "vae" / "config.json").write_bytes(content)
    assert f"config.json is not JSON{said}" in _refused(Base(id=str(folder)))
    single = folder.parent / "model.safetensors"
    single.write_bytes(content)
    assert said in _refused(Base(id=str(single)))


def test_a_partial_download_is_named(folder: Path) -> None:
    file = folder / "unet" / UNET
    file.rename(file.with_name(f"{UNET}.incomplete"))
    assert f"unet is incomplete: no safetensors weights but the partial download {UNET}.incomplete" in _refused(
        Base(id=str(folder))
    )


@pytest.mark.parametrize("part", FILES)
def test_weights_of_another_shape_are_named(folder: Path, part: str) -> None:
    weights = load_file(folder / part / FILES[part])
    name = sorted(weights)[-1]
    weights[name] = torch.zeros(*weights[name].shape, 2)
    save_file(weights, folder / part / FILES[part], {"format": "pt"})
    said = _refused(Base(id=str(folder)))
    assert name.removeprefix("text_model.") in said
    assert "shape" in said
    assert "config.json" in said


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("unet", "cross_attention_dim"),
        ("vae", "scaling_factor"),
        ("text_encoder", "hidden_size"),
        ("text_encoder_2", "projection_dim"),
    ],
)
def test_a_config_without_a_key_that_decides_is_named(folder: Path, part: str, key: str) -> None:
    file = folder / part / "config.json"
    file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != key}))
    assert f"{part}/config.json has no {key}" in _refused(Base(id=str(folder)))


def test_a_folder_one_level_off_is_named(folder: Path, tmp_path: Path) -> None:
    assert f"did you mean '{folder}' inside it?" in _refused(Base(id=str(tmp_path)))
    assert f"it is one part of a pipeline: give '{folder}'" in _refused(Base(id=str(folder / "unet")))
    hub = tmp_path / "models--owner--name" / "snapshots" / "0123"
    hub.parent.mkdir(parents=True)
    folder.rename(hub)
    assert f"did you mean '{hub}' inside it?" in _refused(Base(id=str(hub.parents[1])))
    assert f"did you mean '{hub}'?" in _refused(Base(id=str(hub.with_name("0132"))))


def _lora_folder(folder: Path) -> Path:
    save_file({"unet.x.lora_A.weight": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors")
    return folder


def _artifact(folder: Path) -> Path:
    (folder / "manifest.json").write_text(json.dumps({"base": {"id": "my/base"}, "kind": "lora"}))
    return _lora_folder(folder)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _one_model(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps({"_class_name": kind}))
        save_file({"x": torch.zeros(1)}, folder / UNET)
        return folder

    return write


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_lora_folder, "it holds a LoRA: give the base that it was made on"),
        (_artifact, "it is a LoRA on base 'my/base': give that base, or make a model of both first: "),
        (lambda folder: _artifact(_made(folder / "artifact")).parent, "/artifact --into model --out MODEL"),
        (_one_model("ControlNetModel"), "it is one model, ControlNetModel, and no whole pipeline: give an SDXL"),
        (_one_model("AutoencoderKL"), "it is a VAE (AutoencoderKL) alone: set base.vae"),
    ],
)
def test_a_folder_of_something_else_is_named(tmp_path: Path, write: Callable[[Path], Path], said: str) -> None:
    assert said in _refused(Base(id=str(write(tmp_path))))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (
            {"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None]},
            "the SDXL refiner, which has no first text encoder: give an SDXL",
        ),
        ({"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "put StableDiffusionXLPipeline there"),
        (
            {"_class_name": "StableDiffusionPipeline"},
            "Stable Diffusion 1.x or 2.x: give an SDXL, for example base=",
        ),
        ({"_class_name": "StableDiffusion3Pipeline"}, "Stable Diffusion 3: give an SDXL"),
        ({"_class_name": "FluxPipeline"}, "FLUX: give an SDXL"),
        ({"_class_name": "NewPipeline"}, "made for 'NewPipeline': give an SDXL"),
    ],
)
def test_a_pipeline_of_another_family_gets_the_fix(folder: Path, index: dict[str, object], said: str) -> None:
    _edit(folder / "model_index.json", **index)
    assert said in _refused(Base(id=str(folder)))


SDXL_UNET = {"model.diffusion_model.label_emb.0.0.weight": 1}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"lora_unet_x.lora_down.weight": 1}, "a LoRA: a base is the whole model it was made on, give the base"),
        ({"unet.down_blocks.0.x.lora_A.weight": 1}, "a LoRA"),
        ({"base_model.model.x.lora_A.weight": 1}, "a LoRA"),
        ({"diffusion_model.x.hada_w1_a": 1}, "a LoRA"),
        ({"control_model.input_hint_block.0.weight": 1}, "a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": 1, "conv_in.weight": 1}, "a ControlNet"),
        ({"image_proj.proj.weight": 1, "ip_adapter.1.to_k_ip.weight": 1}, "an IP-Adapter"),
        ({"clip_l": 1, "clip_g": 1}, "a textual inversion"),
        ({"<dog>": 1}, "a textual inversion"),
        ({**SDXL_UNET, "conditioner.embedders.0.model.x": 1}, "the SDXL refiner, which has no first text encoder"),
        ({**SDXL_UNET, "conditioner.embedders.1.model.x": 1}, "a part of one, without text_encoder: give the whole"),
        ({**SDXL_UNET, "conditioner.embedders.0.transformer.x": 1}, "a part of one, without text_encoder_2"),
        (SDXL_UNET, "a part of one, without text_encoder and text_encoder_2"),
        ({"cond_stage_model.transformer.x": 1}, "Stable Diffusion 1.x or 2.x, which has one text encoder"),
        ({"down_blocks.0.resnets.0.conv1.weight": 1, "conv_in.weight": 1}, "a UNet alone"),
        ({"decoder.conv_in.weight": 1, "encoder.conv_in.weight": 1}, "a VAE alone: set base.vae"),
        ({"text_model.embeddings.token_embedding.weight": 1}, "a text encoder alone"),
        ({"joint_blocks.0.x": 1}, "Stable Diffusion 3: give an SDXL"),
        ({"single_transformer_blocks.0.x": 1}, "FLUX: give an SDXL"),
    ],
)
def test_a_single_file_of_something_else_gets_the_fix(tmp_path: Path, tensors: dict[str, int], said: str) -> None:
    file = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(size) for name, size in tensors.items()}, file)
    assert f"is not SDXL but {said}" in _refused(Base(id=str(file)))


def test_a_single_file_without_a_vae_says_where_to_set_one(tmp_path: Path, embedded: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    write_single_file(embedded, file)
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if not name.startswith("first_stage_model.")}, file)
    base = Base(id=str(file), config=str(embedded))
    assert "has no VAE: set base.vae=FOLDER" in _refused(base)
    base = Base(id=str(file), config=str(embedded), vae=str(embedded / "vae"))
    assert base_model.load_components(base_model.locate(base), base, dtype=torch.float32, device="cpu").vae is not None


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (lambda name: "embedders.0.transformer" not in name or "layers.0" in name, "text encoder"),
        (lambda name: not name.startswith("first_stage_model.") or "decoder" in name, "its vae lacks weights"),
        (lambda name: "output_blocks" not in name, "lacks weights"),
    ],
)
def test_a_single_file_with_half_of_a_part_is_one_line(
    tmp_path: Path, embedded: Path, kept: Callable[[str], bool], said: str
) -> None:
    file = tmp_path / "tiny.safetensors"
    write_single_file(embedded, file)
    save_file({name: value for name, value in load_file(file).items() if kept(name)}, file)
    assert said in _refused(Base(id=str(file), config=str(embedded)))


def test_a_tokenizer_that_is_no_json_is_one_line(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    assert "cannot be loaded" in _refused(Base(id=str(folder)))
