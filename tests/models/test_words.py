"""Textual inversions: prompts say their words as diffusers has them, whatever the encoders' pooling looks for."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdxl_ray.config import recipe as recipes
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import Base, LoraTuning
from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Adapter, Layer, LowRank, WordVectors
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.lora_files import read_lora
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, Artifact, write_manifest
from sdxl_ray.models.base_model import component_configs, locate
from sdxl_ray.models.initial_weights import require_initial
from sdxl_ray.models.lora_artifact import textual_inversion_artifact, write_lora_artifact
from sdxl_ray.models.pipeline import generate, load_pipeline
from sdxl_ray.models.text_encoders import encode_prompts, tokenize
from sdxl_ray.models.truncation import truncations
from sdxl_ray.models.words import add_words
from serve.engine.engine import ServingEngine
from serve.engine.request import ImageRequest
from serve.engine.settings import EngineSettings

FILES = locate(Base())
NAMES = LayerNames.of(component_configs(FILES))
WORD = "<zyx>"
PROMPT = f"a photo of {WORD} on the beach"
ORIGIN = {"command": "import"}


def _tensors(vectors: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(vectors, width, generator=generator)
        for name, width in zip(("clip_l", "clip_g"), NAMES.text_widths, strict=True)
    }


def _vectors(vectors: int = 3) -> WordVectors:
    return WordVectors(**_tensors(vectors))


def _pipe(artifact: Artifact | None = None) -> Any:
    return load_pipeline(Base(), artifact, dtype=torch.float32, device="cpu")


def _draw(pipe: Any) -> np.ndarray:
    return np.asarray(generate(pipe, [PROMPT], seeds=[1], num_inference_steps=2, guidance_scale=5.0)[0], dtype=np.int16)


def _by_diffusers(vectors: WordVectors) -> Any:
    pipe = _pipe()
    both = (
        (vectors.clip_l, pipe.tokenizer, pipe.text_encoder),
        (vectors.clip_g, pipe.tokenizer_2, pipe.text_encoder_2),
    )
    for rows, tokenizer, encoder in both:
        pipe.load_textual_inversion(rows, token=WORD, tokenizer=tokenizer, text_encoder=encoder)
    return pipe


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("words")
    save_file(_tensors(), folder / "zyx.safetensors")
    recipe = recipes.load("tiny_lora")
    return textual_inversion_artifact(
        folder / "artifact", folder / "zyx.safetensors", WORD, FILES, recipe, origin=ORIGIN
    )


@pytest.mark.parametrize("vectors", [1, 3])
def test_prompts_mean_what_they_mean_in_diffusers(vectors: int) -> None:
    pipe, theirs = _pipe(), _by_diffusers(_vectors(vectors))
    add_words(pipe, {WORD: _vectors(vectors)}, "file")
    (states,), pooled = encode_prompts(pipe, [PROMPT])
    their_states, _, their_pooled, _ = theirs.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    torch.testing.assert_close(states, their_states[0])
    torch.testing.assert_close(pooled, their_pooled)
    unknown, _ = encode_prompts(_pipe(), [PROMPT])
    assert unknown[0].shape != states.shape or not torch.allclose(unknown[0], states, atol=0.1)


@pytest.mark.parametrize("eos_token_id", [2, 1560])
def test_the_pooled_vector_is_the_end_tokens(eos_token_id: int) -> None:
    """SDXL's own configs say 2, with which transformers takes the largest id: a word's, once one is added."""
    pipe = _pipe()
    for module in pipe.text_encoder_2.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = eos_token_id
    _, before = encode_prompts(pipe, ["a photo"])
    add_words(pipe, {WORD: _vectors()}, "file")
    _, pooled = encode_prompts(pipe, [PROMPT, "a photo"])
    torch.testing.assert_close(pooled[1], before[0])
    ids = tokenize(pipe.tokenizer_2, [PROMPT]).ids_NL
    end = ids[0].tolist().index(pipe.tokenizer_2.eos_token_id)
    encoder = pipe.text_encoder_2
    with torch.no_grad():
        hidden = encoder(ids, output_hidden_states=True).last_hidden_state
    torch.testing.assert_close(pooled[0], encoder.text_projection(hidden[0, end]))
    assert ids.max() > pipe.tokenizer_2.eos_token_id


def test_an_artifact_draws_its_word(artifact: Artifact) -> None:
    assert sorted(artifact.manifest.files) == [f"embeddings/{WORD}.safetensors"]
    assert artifact.manifest.recipe["data"]["subject"] == WORD
    recipes.parse_recorded(artifact.manifest.recipe, "recipe")
    drawn, theirs = _draw(_pipe(artifact)), _by_diffusers(_vectors())
    states, _, pooled, _ = theirs.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    expected = theirs(
        prompt_embeds=states,
        pooled_prompt_embeds=pooled,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert np.abs(drawn - np.asarray(expected, np.int16)).max() <= 1
    assert np.abs(drawn - _draw(_pipe())).max() > 20


def test_a_lora_brings_its_words_along(tmp_path: Path) -> None:
    layer = Layer("text_encoder_2", "text_model.encoder.layers.0.self_attn.q_proj")
    out, width = NAMES.shapes[layer]
    adapter = Adapter({layer: LowRank(torch.ones(1, width), torch.ones(out, 1), 0.1)}, words={WORD: _vectors()})
    lora = write_lora_artifact(tmp_path / "artifact", adapter, NAMES, FILES, Recipe(), origin=ORIGIN)
    assert {LORA_WEIGHTS, KOHYA_WEIGHTS, f"embeddings/{WORD}.safetensors"} == lora.manifest.files.keys()
    pipe = _pipe(lora)
    assert pipe.get_list_adapters() == {"text_encoder_2": ["tuned"]}
    assert len(tokenize(pipe.tokenizer, [WORD]).ids_NL[0].unique()) == 2 + 3
    again, unused = read_lora(lora.folder / KOHYA_WEIGHTS, NAMES, "file")
    assert not unused
    assert torch.equal(again.words[WORD].clip_g, adapter.words[WORD].clip_g)


def test_a_words_tokens_count_towards_the_length() -> None:
    pipe = _pipe()
    add_words(pipe, {WORD: _vectors(20)}, "file")
    cut = truncations((pipe.tokenizer, pipe.tokenizer_2), [f"{WORD} {WORD}"], 75)[f"{WORD} {WORD}"]
    assert (cut.tokens, cut.used) == (40, 30)


def _without(*names: str, **more: Tensor) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in _tensors().items() if name not in names} | more


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"emb_params": torch.ones(2, 768)}, r"for one text encoder \(emb_params\), as textual inversions of SD 1.x"),
        ({WORD: torch.ones(2, 768)}, "for one text encoder"),
        (_without("clip_g"), "lacks clip_g"),
        (_without(more=torch.ones(1)), "also has more"),
        (_without(clip_l=torch.ones(3, 768)), r"clip_l has shape \[3, 768\], the base's encoder takes vectors of 64"),
        (_without(clip_l=torch.ones(2, 64)), "2 vectors in clip_l and 3 in clip_g"),
        (_without(clip_l=torch.full((3, 64), torch.nan)), "NaN or infinity"),
    ],
)
def test_what_is_no_textual_inversion_of_the_base_is_one_line(
    tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "zyx.safetensors")
    with pytest.raises(UserError, match=message):
        textual_inversion_artifact(
            tmp_path / "artifact", tmp_path / "zyx.safetensors", WORD, FILES, Recipe(), origin=ORIGIN
        )
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("word", ["", "two words", "../zyx", ".zyx", "a/b"])
def test_what_is_no_word_is_one_line(tmp_path: Path, word: str) -> None:
    save_file(_tensors(), tmp_path / "zyx.safetensors")
    with pytest.raises(UserError, match="cannot be a word of prompts"):
        textual_inversion_artifact(
            tmp_path / "artifact", tmp_path / "zyx.safetensors", word, FILES, Recipe(), origin=ORIGIN
        )


@pytest.mark.parametrize("word", [WORD, "dog", "a"])
def test_a_word_that_the_base_knows_is_one_line(word: str) -> None:
    pipe = _pipe()
    add_words(pipe, {WORD: _vectors()}, "file")
    with pytest.raises(UserError, match=f"knows the word '{word}' already"):
        add_words(pipe, {word: _vectors()}, "file")


def test_a_word_of_letters_is_not_found_inside_others() -> None:
    pipe = _pipe()
    before = tokenize(pipe.tokenizer, ["zyxel"]).ids_NL
    add_words(pipe, {"zyx": _vectors()}, "file")
    assert torch.equal(tokenize(pipe.tokenizer, ["zyxel"]).ids_NL, before)
    assert torch.equal(tokenize(pipe.tokenizer, ["a ZYX."]).ids_NL, tokenize(pipe.tokenizer, ["a zyx."]).ids_NL)
    assert tokenize(pipe.tokenizer, ["a zyx."]).ids_NL[0, 2:5].tolist() == [1561, 1562, 1563]


def test_an_artifact_for_other_encoders_is_one_line(artifact: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifact.folder, tmp_path / "artifact"))
    file = folder / "embeddings" / f"{WORD}.safetensors"
    save_file(load_file(file) | {"clip_l": torch.ones(3, 768)}, file)
    other = write_manifest(
        folder, kind="lora", recipe={}, recipe_identity="", base_id="tiny", base_revision=FILES.revision, step=0
    )
    with pytest.raises(UserError, match=r"clip_l has shape \[3, 768\]"):
        _pipe(other)


def test_no_recipe_starts_from_it(artifact: Artifact) -> None:
    with pytest.raises(UserError, match="brings the word '<zyx>', which no recipe can use"):
        require_initial(Recipe(tuning=LoraTuning(init=str(artifact.folder))), FILES)


def test_it_is_served_as_a_variant_of_its_own(artifact: Artifact) -> None:
    settings = EngineSettings(device="cpu", dtype="fp32")
    with pytest.raises(UserError, match=r"brings words of its own \(<zyx>\), .*fuse it into a variant of its own"):
        ServingEngine(Base(), adapters={"zyx": artifact}, settings=settings)

    async def main() -> None:
        engine = ServingEngine(Base(), adapters={"zyx": artifact}, settings=settings, fuse="zyx")
        await engine.start()
        try:
            drawn = await engine.draw(ImageRequest(PROMPT, 1, num_inference_steps=2, guidance_scale=5.0))
        finally:
            await engine.stop()
        assert np.abs(np.asarray(drawn.image, np.int16) - _draw(_pipe(artifact))).max() <= 1

    asyncio.run(main())
