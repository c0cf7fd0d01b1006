"""Encoders of every family, built small, read from folders: the numbers are those that transformers gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.encoders import NAMES, load_encoder
from sdxl_ray.evaluation.preprocessing import Preprocessing
from sdxl_ray.tiny import shipped

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
NORMAL = {"image_mean": [0.48, 0.45, 0.40], "image_std": [0.26, 0.27, 0.28]}
SQUARE = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2, **NORMAL}
CROPPED = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "resample": 3,
    **NORMAL,
}


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (70, 45), (33, 90)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def _save(folder: Path, model: Any, preprocessor: dict[str, Any]) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    vision = {**SMALL, "intermediate_size": 64}
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    words = json.loads((shipped.CLIP / "config.json").read_text())["text_config"]
    text |= {key: words[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    text |= {"max_position_embeddings": 32}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, dtype="float32")
    )
    made = {
        "vit": _save(home / "vit", transformers.ViTModel(transformers.ViTConfig(**SMALL)), SQUARE),
        "dinov2": _save(home / "dinov2", transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)), CROPPED),
        "registers": _save(
            home / "registers",
            transformers.Dinov2WithRegistersModel(
                transformers.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=3)
            ),
            CROPPED,
        ),
        "clip": _save(home / "clip", clip, {**CROPPED, "image_processor_type": "CLIPImageProcessor"}),
    }
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shipped.CLIP / file, made["clip"])
    return made


@pytest.mark.parametrize("family", ["vit", "dinov2", "registers"])
def test_a_vit_gives_its_class_token_and_its_patches(
    family: str, folders: dict[str, Path], images: list[Image.Image]
) -> None:
    encoder = load_encoder(str(folders[family]))
    model = transformers.AutoModel.from_pretrained(folders[family]).eval()
    processor = ViTImageProcessorPil if family == "vit" else BitImageProcessorPil
    pixels = processor.from_pretrained(folders[family])(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = model(pixel_values=pixels).last_hidden_state.numpy()
    rows, patches = encoder.encode(images)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, tokens[:, 0] / np.linalg.norm(tokens[:, 0], axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(patches, tokens[:, -16:], atol=1e-5)
    assert patches.shape == (3, 16, 32)
    with pytest.raises(UserError, match="reads no text"):
        encoder.texts(["a dog"])


def test_a_clip_gives_projected_images_and_texts(folders: dict[str, Path], images: list[Image.Image]) -> None:
    encoder = load_encoder(str(folders["clip"]))
    model = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folders["clip"])(images, return_tensors="pt")["pixel_values"]
    texts = ["a photo of a dog", "a cat on the beach with a red hat"]
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folders["clip"])
    words = tokenizer(texts, padding=True, return_tensors="pt")  # with its mask: the padding must not matter
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=pixels).pooler_output.numpy()
        read = model.get_text_features(**words).pooler_output.numpy()
    np.testing.assert_allclose(encoder.images(images), seen / np.linalg.norm(seen, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(encoder.texts(texts), read / np.linalg.norm(read, axis=1, keepdims=True), atol=1e-5)
    assert encoder.patches(images).shape == (3, 16, 32)
    assert encoder.reads_text


def test_the_shipped_encoders_open_and_say_how_they_see(images: list[Image.Image]) -> None:
    identity, clip = load_encoder("tiny-identity"), load_encoder("tiny-clip")
    assert identity.preprocessing == "resize 64x64 bicubic, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    assert clip.preprocessing.startswith("resize shortest edge 64 bicubic, centre crop 64x64, mean")
    for rows in (identity.images(images), clip.images(images), clip.texts(["a photo of a frog"])):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    one = identity.images(images[1:2])[0]  # what else is in the batch does not matter
    np.testing.assert_allclose(one, identity.images(images)[1], atol=1e-5)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"size": 24, "feature_extractor_type": "ViTFeatureExtractor", **NORMAL}, "resize 24x24 bilinear, mean 0.48"),
        (  # it names no processor: the model's own
            {"size": 24, "crop_size": 24, "do_center_crop": True, "resample": 3, **NORMAL},
            "resize shortest edge 24 bicubic, centre crop 24x24, mean 0.48",
        ),
        ({**SQUARE, "size": {"height": 24, "width": 24}, "rescale_factor": 0.5}, "resize 24x24 bilinear, scale 0.5, m"),
    ],
)
def test_preprocessor_configs_old_and_new(
    config: dict[str, Any], text: str, images: list[Image.Image], tmp_path: Path
) -> None:
    _save(tmp_path, transformers.Dinov2Config(), config)
    prepare = Preprocessing.load(tmp_path, "encoder")
    assert prepare.text.startswith(text)
    assert prepare([images[0].convert("L"), images[1].convert("RGBA"), images[2]]).shape == (3, 3, 24, 24)


def test_pixels_are_resized_cropped_and_normalised(images: list[Image.Image], tmp_path: Path) -> None:
    """Computed here with PIL and NumPy: a release of transformers must not change the scores."""
    _save(tmp_path, transformers.Dinov2Config(), CROPPED)
    found = Preprocessing.load(tmp_path, "encoder")(images)
    for image, pixels_CHW in zip(images, found, strict=True):
        scale = 40 / min(image.size)
        resized = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
        top, left = (resized.height - 32) // 2, (resized.width - 32) // 2
        values_HWC = np.asarray(resized.crop((left, top, left + 32, top + 32))) / 255
        expected_HWC = (values_HWC - NORMAL["image_mean"]) / NORMAL["image_std"]
        np.testing.assert_allclose(pixels_CHW, expected_HWC.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"size": {"shortest_edge": 8}, "do_center_crop": False, **NORMAL}, "needs a crop_size"),
        ({"size": {"shortest_edge": 8}, "crop_size": 9, "do_center_crop": True, **NORMAL}, "to one size"),
        ({**SQUARE, "do_resize": False}, "to one size"),
        ({**SQUARE, "image_mean": [0.5], "image_std": [0.5]}, "normalises 1 channels"),
        ({**SQUARE, "image_std": [0.5, 0.0, 0.5]}, "image_std has a 0"),
        ({**SQUARE, "image_mean": "a"}, "cannot be loaded"),
        ({**SQUARE, "resample": 99}, "cannot be loaded: 99"),
        ({**SQUARE, "size": "large"}, "cannot be loaded: .*large"),
        ({**SQUARE, "image_processor_type": "OurImageProcessor"}, "cannot be loaded"),
    ],
)
def test_preprocessor_configs_that_cannot_be_followed(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    _save(tmp_path, transformers.Dinov2Config(), config)
    with pytest.raises(UserError, match=f"encoder 'x': preprocessor_config.json .*{words}") as caught:
        Preprocessing.load(tmp_path, "encoder 'x'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-clap", "did you mean 'tiny-clip'"),
        ("dinov2-base", "--identity=FOLDER"),
        ("some/encoder", "write some/encoder@COMMIT"),
        ("some/encoder@main", "write some/encoder@COMMIT"),
        (f"some/encoder@{'a' * 40}", "--identity=FOLDER"),
        ("weights.bin", "give the folder"),
    ],
)
def test_an_encoder_that_is_not_here_says_how_to_point_at_a_folder(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_encoder(name, setting="--identity")
    assert name.partition("@")[0] in str(caught.value) or "dinov2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_folders_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["vit"], tmp_path / "copy"))
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json is missing"):
        load_encoder(str(copy))
    shutil.copy(folders["vit"] / "preprocessor_config.json", copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks \d+ weights"):
        load_encoder(str(copy))
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "resnet"}))
    with pytest.raises(UserError, match="family 'resnet'"):
        load_encoder(str(copy))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        load_encoder(str(copy))
    assert {"tiny-identity", "tiny-clip", "clip-vit-b32", "clip-vit-l14", "dino-vits16", "dinov2-base"} == set(NAMES)
