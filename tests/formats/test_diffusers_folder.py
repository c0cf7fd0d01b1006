"""Folders of whole models that older libraries can read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from sdxl_ray.formats.diffusers_folder import make_readable, restore_wrapper


def test_the_embedded_base_has_the_names_that_every_version_reads(embedded: Path) -> None:
    for part in ("text_encoder", "text_encoder_2"):
        names = load_file(embedded / part / "model.safetensors")
        assert all(name.startswith(("text_model.", "text_projection.")) for name in names)


def test_the_wrapper_is_restored_and_nothing_else_changes(embedded: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    original = load_file(embedded / "text_encoder" / "model.safetensors")
    save_file({name.removeprefix("text_model."): value for name, value in original.items()}, file, {"format": "pt"})
    restore_wrapper(file)
    restored = load_file(file)
    assert restored.keys() == original.keys()
    assert all(torch.equal(restored[name], original[name]) for name in original)
    before = file.read_bytes()
    restore_wrapper(file)
    assert file.read_bytes() == before


def test_a_tokenizer_of_two_files_is_the_tokenizer_of_one(embedded: Path, tmp_path: Path) -> None:
    whole = embedded / "tokenizer_2"
    shutil.copytree(whole, tmp_path / "tokenizer_2", ignore=shutil.ignore_patterns("vocab.json", "merges.txt"))
    make_readable(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "tokenizer_2" / name).read_bytes() == (whole / name).read_bytes()
    (tmp_path / "tokenizer_2" / "tokenizer.json").unlink()
    one, two = CLIPTokenizer.from_pretrained(whole), CLIPTokenizer.from_pretrained(tmp_path / "tokenizer_2")
    text = ["a photo of a robot on the beach", "sks Dog's 3 caf\u00e9s!"]
    assert one(text).input_ids == two(text).input_ids


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_installed_transformers_reads_both_forms(wrapped: bool, embedded: Path, tmp_path: Path) -> None:
    shutil.copytree(embedded / "text_encoder", tmp_path / "text_encoder")
    file = tmp_path / "text_encoder" / "model.safetensors"
    if not wrapped:
        named = load_file(file)
        save_file({name.removeprefix("text_model."): value for name, value in named.items()}, file, {"format": "pt"})
    model, info = CLIPTextModel.from_pretrained(tmp_path / "text_encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.hidden_size == 64
