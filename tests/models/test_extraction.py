"""LoRAs from a full model: they draw what it draws, hold every layer that differs, and say what they lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import sdxl_ray
from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats.extraction import rank_rules
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.lora_files import read_lora
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, Artifact
from sdxl_ray.io.records import read
from sdxl_ray.models.base_model_files import component_configs, locate
from sdxl_ray.models.extraction import ALL, ExtractionResult, extract
from sdxl_ray.models.full_model import FullModel
from sdxl_ray.models.pipeline import generate, load_pipeline
from tests.full_model import layer_noise, moved_base, moved_run

RECIPE = override(Recipe(), {"data.subject": "sks dog", "data.class_name": "dog", "tuning": {"kind": "full"}})
QUICK = {"num_inference_steps": 3, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Every Linear, convolution and embedding of all three parts differs from the base's."""
    return moved_run(tmp_path_factory.mktemp("runs") / "moved", RECIPE, layer_noise(0.03))


@pytest.fixture(scope="module")
def extracted(tuned: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExtractionResult, Path]:
    out = tmp_path_factory.mktemp("extracted")
    return extract(FullModel.open(tuned), rank_rules("4,full", "0.9"), out), out


def _images(artifact: Artifact) -> Any:
    pipe = load_pipeline(Base(), artifact, dtype=torch.float32, device="cpu")
    drawn = generate(pipe, ["a photo of sks dog on the beach", "a red robot"], seeds=[1, 2], **QUICK)
    return np.stack([np.asarray(image, np.float64) for image in drawn]) / 255


def test_full_rank_draws_what_the_model_draws(tuned: Artifact, extracted: tuple[ExtractionResult, Path]) -> None:
    found, _ = extracted
    target = _images(tuned)
    assert np.abs(_images(found.artifacts["rank-full"]) - target).mean() < 1e-3
    assert np.abs(_images(found.artifacts["rank-4"]) - target).mean() > 1e-3  # and ranks do matter here


def test_the_error_is_what_the_singular_values_say(extracted: tuple[ExtractionResult, Path]) -> None:
    found, out = extracted
    layers = read(out / "records", "extracted_layers").to_pylist()
    assert {row["part"] for row in found.rows} == {"unet", "text_encoder", "text_encoder_2", ALL}
    assert any(row["module"] == "conv_in" for row in layers)
    assert any(row["module"].endswith("downsamplers.0.conv") for row in layers)
    assert any(row["module"] == "text_projection" for row in layers)
    for row in found.rows:
        assert row["residual"] == pytest.approx(row["predicted"], abs=1e-4)
    tails = sum(value**2 for row in layers for value in row["singular"][4:])
    whole = sum(value**2 for row in layers for value in row["singular"])
    four = next(row for row in found.rows if (row["name"], row["part"]) == ("rank-4", ALL))
    assert four["predicted"] == pytest.approx((tails / whole) ** 0.5, rel=1e-9)
    assert four["squared"] == pytest.approx(whole, rel=1e-9)
    energy = next(row for row in found.rows if (row["name"], row["part"]) == ("energy-0.9", ALL))
    assert 1 - energy["predicted"] ** 2 >= 0.9
    assert energy["lowest_rank"] < energy["highest_rank"]


def test_artifacts_say_what_they_are(tuned: Artifact, extracted: tuple[ExtractionResult, Path]) -> None:
    found, out = extracted
    artifact = Artifact.open(out / "rank-4")
    assert artifact.hash == found.artifacts["rank-4"].hash
    origin = artifact.manifest.origin or {}
    assert (origin["command"], origin["source"], origin["rank"]) == ("extract", tuned.hash, 4)
    assert origin["residual"] == next(r["residual"] for r in found.rows if (r["name"], r["part"]) == ("rank-4", ALL))
    data = artifact.manifest.recipe["data"]
    assert (data["subject"], data["class_name"]) == ("sks dog", "dog")
    row = next(row for row in found.rows if (row["name"], row["part"]) == ("rank-4", ALL))
    assert row["diffusers_bytes"] == (artifact.folder / LORA_WEIGHTS).stat().st_size
    stored = load_file(artifact.folder / LORA_WEIGHTS)
    assert row["parameters"] == sum(tensor.numel() for tensor in stored.values())


def test_embeddings_come_back_from_diffusers_file_and_are_not_in_kohyas(
    extracted: tuple[ExtractionResult, Path],
) -> None:
    names = LayerNames.of(component_configs(locate(Base())))
    folder = extracted[1] / "rank-4"
    adapter, unused = read_lora(folder / LORA_WEIGHTS, names, "here")
    assert unused == []
    assert set(names.embeddings) <= set(adapter.layers)
    for layer, shape in names.embeddings.items():
        assert adapter.low_rank[layer].shape == shape
        assert adapter.low_rank[layer].alpha == 4
    others, unused = read_lora(folder / KOHYA_WEIGHTS, names, "here")
    assert unused == []
    assert set(others.layers) == set(adapter.layers) - set(names.embeddings)
    lost = {row["kind"]: row for row in extracted[0].lost}
    assert lost["embeddings"]["tensors"] == len(names.embeddings) == 4
    assert lost["embeddings"]["share"] > 0


def test_the_tiniest_change_of_an_encoder_is_kept_and_what_no_lora_holds_is_counted(tmp_path: Path) -> None:
    layer = "encoder.layers.0.self_attn.q_proj.weight"

    def move(part: str, name: str, weight: Tensor) -> Tensor | None:
        if (part, name) == ("text_encoder", layer):
            changed = weight.clone()
            changed[3, 5] = weight[3, 5] + 1e-6
            return changed
        if (part, name) == ("unet", "conv_in.bias"):
            return weight + 3e-6
        return None

    artifact = moved_run(tmp_path / "run", RECIPE, move)
    found = extract(FullModel.open(artifact), rank_rules("1"), tmp_path / "out")
    layers = read(tmp_path / "out" / "records", "extracted_layers").to_pylist()
    assert [(row["part"], row["module"]) for row in layers] == [
        ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj")
    ]
    assert layers[0]["singular"][0] == pytest.approx(1e-6, rel=0.2)  # one step of fp32 at this weight
    stored = load_file(found.artifacts["rank-1"].folder / LORA_WEIGHTS)
    change = next(t for n, t in stored.items() if "lora_B" in n) @ next(t for n, t in stored.items() if "lora_A" in n)
    assert float(change[3, 5]) == pytest.approx(layers[0]["singular"][0], rel=1e-4)
    lost = {row["kind"]: row for row in found.lost}
    bias = 4 * 8 * 9e-12  # of 32 channels
    assert lost["biases"]["tensors"] == 1
    assert lost["biases"]["share"] == pytest.approx(bias / (bias + layers[0]["squared"]), rel=0.05)
    assert lost["unchanged"]["tensors"] > 400


def test_a_rank_that_is_there_is_not_made_again_and_a_damaged_one_is(tuned: Artifact, tmp_path: Path) -> None:
    model = FullModel.open(tuned)
    first = extract(model, rank_rules("1"), tmp_path)
    seen: list[str] = []
    again = extract(model, rank_rules("1"), tmp_path, on_row=lambda row: seen.append(row["name"]))
    assert (again.rows, again.lost, seen) == (first.rows, first.lost, [])
    assert again.artifacts["rank-1"].hash == first.artifacts["rank-1"].hash
    weights = tmp_path / "rank-1" / LORA_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    both = extract(model, rank_rules("1,2"), tmp_path, on_row=lambda row: seen.append(row["name"]))
    assert "extracting" in seen
    assert set(both.artifacts) == {"rank-1", "rank-2"}
    with pytest.raises(UserError, match="give another --out"):
        extract(model, rank_rules("1"), tmp_path, dtype=torch.bfloat16)


def test_the_public_function_does_the_same(tuned: Artifact, tmp_path: Path) -> None:
    found = sdxl_ray.extract(tuned, ["full", 1], out=tmp_path / "out", dtype="fp16")
    assert [row["name"] for row in found.rows if row["part"] == ALL] == ["rank-full", "rank-1"]
    stored = load_file(tmp_path / "out" / "rank-1" / KOHYA_WEIGHTS)
    assert {tensor.dtype for name, tensor in stored.items() if not name.endswith(".alpha")} == {torch.float16}
    with pytest.raises(UserError, match="'0' is no rank"):
        sdxl_ray.extract(tuned, [0])


def test_what_lies_in_the_way_stays(tuned: Artifact, tmp_path: Path) -> None:
    mine = tmp_path / "rank-1" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match="is no extraction"):
        extract(FullModel.open(tuned), rank_rules("1"), tmp_path)
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-1"]


def test_a_diffusers_folder_with_its_base_in_another_dtype(tmp_path: Path) -> None:
    """What was not trained differs by its rounding alone, which is not extracted."""

    def move(part: str, name: str, weight: Tensor) -> Tensor | None:
        return weight + 1 if (part, name) == ("unet", "conv_out.weight") else None

    folder = moved_base(tmp_path / "model", move, torch.bfloat16)
    model = FullModel.open(folder, Base(), subject="sks cat", class_name="cat")
    found = extract(model, rank_rules("2"), tmp_path / "out")
    lost = {row["kind"]: row for row in found.lost}
    assert lost["rounded"]["tensors"] > 300
    assert next(row for row in found.rows if row["part"] == ALL)["layers"] == 1
    with safe_open(tmp_path / "out" / "rank-2" / LORA_WEIGHTS, "pt") as opened:
        names = list(opened.keys())
        assert {name.split(".lora")[0] for name in names} == {"unet.conv_out"}
        assert opened.get_tensor(names[0]).dtype == torch.bfloat16
    assert found.artifacts["rank-2"].manifest.recipe["data"]["subject"] == "sks cat"


def test_weights_that_are_no_numbers_write_nothing(tmp_path: Path) -> None:
    def move(part: str, name: str, weight: Tensor) -> Tensor | None:
        return weight * float("nan") if name == "conv_in.weight" else None

    folder = moved_base(tmp_path / "model", move)
    with pytest.raises(UserError, match=r"NaN or infinity in conv_in\.weight"):
        extract(FullModel.open(folder, Base()), rank_rules("2"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_of_other_shapes_and_the_base_itself_are_refused(tmp_path: Path) -> None:
    folder = moved_base(tmp_path / "model", lambda part, name, weight: None)
    with pytest.raises(UserError, match="no layer that a LoRA can hold differs"):
        extract(FullModel.open(folder, Base()), rank_rules("2"), tmp_path / "out")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({**weights, "conv_in.weight": weights["conv_in.weight"][:16].contiguous()}, file)
    with pytest.raises(UserError, match=r"conv_in.weight of the unet is \[16, 4, 3, 3\], in the base"):
        extract(FullModel.open(folder, Base()), rank_rules("2"), tmp_path / "out")
    del weights["conv_in.weight"]
    save_file(weights, file)
    with pytest.raises(UserError, match=r"has no conv_in\.weight in its unet"):
        extract(FullModel.open(folder, Base()), rank_rules("2"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
