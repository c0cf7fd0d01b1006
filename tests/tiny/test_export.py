"""The scoring encoders as transformers loads them, and what the writer of shipped folders refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    ViTConfig,
    ViTModel,
)

from sdxl_ray.tiny import shipped
from sdxl_ray.tiny._build import export, layout


@pytest.fixture(scope="module")
def image() -> Image.Image:
    with Image.open(shipped.ROOT / "subjects" / "robot" / "0.png") as opened:
        return opened.convert("RGB")


def test_the_caption_scorer_loads_with_the_classes_of_the_real_one(image: Image.Image) -> None:
    folder = shipped.verify(shipped.CLIP)
    model = CLIPModel.from_pretrained(folder).eval()
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert type(AutoModel.from_pretrained(folder)) is CLIPModel
    words = AutoTokenizer.from_pretrained(folder)
    assert words("a photo of a dog").input_ids[0] == model.config.text_config.bos_token_id
    assert words("a photo of a dog").input_ids[-1] == model.config.text_config.eos_token_id
    assert words.model_max_length == model.config.text_config.max_position_embeddings
    inputs = CLIPProcessor.from_pretrained(folder)(
        text=["a robot", "a dog on the beach"], images=image, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        assert model(**inputs).logits_per_image.shape == (1, 2)


def test_the_identity_scorer_loads_with_the_classes_of_the_real_one(image: Image.Image) -> None:
    folder = shipped.verify(shipped.IDENTITY)
    model, info = ViTModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
    assert type(AutoModel.from_pretrained(folder, add_pooling_layer=False)) is ViTModel
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    with torch.no_grad():
        state_BTC = model.eval()(**inputs).last_hidden_state
    assert state_BTC.shape == (1, 65, model.config.hidden_size)


@pytest.mark.parametrize("part", [shipped.CLIP, shipped.IDENTITY], ids=["clip", "identity"])
def test_pixels_are_scaled_to_one_around_zero_and_larger_images_shrunk(part: Path, image: Image.Image) -> None:
    processor = AutoImageProcessor.from_pretrained(part)
    pixels_BCHW = processor(image, return_tensors="pt")["pixel_values"]
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1)
    assert torch.allclose(pixels_BCHW[0], raw.float() / 127.5 - 1, atol=1e-5)
    larger = image.resize((128, 128), Image.Resampling.NEAREST)
    assert processor(larger, return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)
    assert processor(larger.convert("L"), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


def _vit(**changes: object) -> ViTModel:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        return ViTModel(ViTConfig(**small, image_size=64, patch_size=16), **{"add_pooling_layer": False, **changes})


def test_what_is_written_is_what_was_given_rounded_once(tmp_path: Path) -> None:
    for precision in (torch.float32, torch.bfloat16):
        model = torch.nn.Module.to(_vit(), precision)
        export.write_identity(tmp_path, model)
        config = json.loads((tmp_path / "config.json").read_text())
        assert (config["dtype"], config["image_size"]) == ("float32", 64)
        again = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
        assert again.dtype == torch.float32
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value.half().float()), name
        assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644
        # A model that came from a folder does not carry the folder's name into another's.
        export.write_identity(tmp_path / "copy", again)
        assert str(tmp_path) not in (tmp_path / "copy" / "config.json").read_text()


def test_the_base_is_written_as_it_was_loaded(tmp_path: Path, embedded: Path) -> None:
    export.write_base(
        tmp_path,
        AutoencoderKL.from_pretrained(embedded / "vae"),
        UNet2DConditionModel.from_pretrained(embedded / "unet"),
        CLIPTextModel.from_pretrained(embedded / "text_encoder"),
        CLIPTextModelWithProjection.from_pretrained(embedded / "text_encoder_2"),
    )
    files = sorted(file.relative_to(embedded) for file in embedded.rglob("*") if file.is_file())
    assert sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()) == files
    for file in files:
        if file.suffix == ".safetensors":
            ours, theirs = load_file(tmp_path / file), load_file(embedded / file)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has a pooler: make it with add_pooling_layer=False"):
        export.write_identity(tmp_path, _vit(add_pooling_layer=True))
    large = _vit()
    with torch.no_grad():
        large.layernorm.weight[3] = 70_000
    with pytest.raises(ValueError, match=r"layernorm\.weight has weights that are not finite in fp16"):
        export.write_identity(tmp_path, large)
    config = {**layout.configs()["text_encoder"], "intermediate_size": 32}
    with torch.random.fork_rng():
        other = CLIPTextModel(CLIPTextConfig(**config))
    with pytest.raises(ValueError, match="intermediate_size is 32, the layout says 256"):
        export._write_transformers(tmp_path / "text_encoder", other, layout.configs()["text_encoder"])
