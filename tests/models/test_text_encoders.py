"""Texts in chunks: one chunk is what it always was, several are used to their end, and lengths mix in a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.data.batch_sampler import Example, View
from sdxl_ray.data.dataset import DatasetImage
from sdxl_ray.data.latents import LatentSource, TextSource
from sdxl_ray.models.base_model import Components
from sdxl_ray.models.denoiser import Denoiser, TextInputs
from sdxl_ray.models.noise_schedule import Diffusion
from sdxl_ray.models.pipeline import _conditioning, generate
from sdxl_ray.models.text_encoders import align, encode, encode_captions, encode_prompts, most_tokens, tokenize
from sdxl_ray.models.truncation import truncations
from sdxl_ray.tiny import shipped
from sdxl_ray.training.batch import BatchEncoder
from sdxl_ray.training.truncation_notes import training_notes
from tests.running import Train

SHORT = ["", "a photo of sks dog", "Zebra-dog's, 日本 <|endoftext|> 42!", " ".join(["dog"] * 30)]
LONG = " ".join(["a red robot on the beach"] * 7)  # 42 tokens: two chunks of the embedded base's 30
LONGER = " ".join(["a blue cat in the snow"] * 14)  # 84: three


def test_one_chunk_is_what_the_tokenizer_gives(tiny: Components) -> None:
    for tokenizer in tiny.tokenizers:
        theirs = tokenizer(SHORT, padding="max_length", max_length=32, truncation=True, return_tensors="pt").input_ids
        for length in (75, 150, 225):
            ours = tokenize(tokenizer, SHORT, length)  # type: ignore[arg-type]
            assert torch.equal(ours.ids_NL, theirs)
            assert ours.counts == (1, 1, 1, 1)


@torch.no_grad()
def test_short_prompts_are_conditioned_as_the_pipeline_does_bit_for_bit(tiny: Components) -> None:
    pipe = tiny.pipeline()
    for negative in (None, "", "a blurry cat"):
        theirs = pipe.encode_prompt(SHORT, negative_prompt=negative if negative is None else [negative] * 4)
        ours = _conditioning(pipe, SHORT, negative, True, 225)
        again = pipe.encode_prompt(None, **ours)
        assert all(torch.equal(a, b) for a, b in zip(again, theirs, strict=True))


def test_chunks_end_after_as_many_tokens_as_the_encoder_takes(tiny: Components) -> None:
    tokenizer = tiny.tokenizers[1]
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    (dog,) = tokenizer("dog", add_special_tokens=False).input_ids
    assert [most_tokens(tokenizer, length) for length in (75, 150, 225)] == [30, 60, 90]
    for words, counts in ((0, 1), (30, 1), (31, 2), (60, 2), (61, 3), (90, 3), (91, 3), (500, 3)):
        assert tokenize(tokenizer, ["dog " * words], 225).counts == (counts,)
    ids = tokenize(tokenizer, ["dog " * 31], 150).ids_NL.tolist()
    assert ids == [[start, *[dog] * 30, end], [start, dog, end, *[pad] * 29]]
    assert tokenize(tokenizer, ["dog " * 31], 75).ids_NL.tolist() == ids[:1]


@torch.no_grad()
def test_states_of_chunks_are_joined_and_the_first_ones_pooled_vector_is_used(tiny: Components) -> None:
    tokenizer, encoder = tiny.tokenizers[1], tiny.text_encoders[1]
    (short, long), pooled_BP = encode(encoder, tokenize(tokenizer, ["a dog", LONG], 150))
    words = LONG.split()
    (first,), first_BP = encode(encoder, tokenize(tokenizer, [" ".join(words[:30])]))
    (second,), _ = encode(encoder, tokenize(tokenizer, [" ".join(words[30:])]))
    torch.testing.assert_close(long, torch.cat([first, second]))
    torch.testing.assert_close(pooled_BP[1:], first_BP)
    rows = encode_captions(tokenizer, encoder, ["a dog", LONG], True, 150)
    assert torch.equal(rows[1]["hidden"], long)
    assert torch.equal(rows[0]["hidden"], short)
    assert torch.equal(rows[1]["pooled"], pooled_BP[1])


@torch.no_grad()
def test_a_caption_of_132_tokens_is_used_to_its_end_by_encoders_of_clips_length() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(shipped.folder() / "tokenizer", model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=16, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    encoder = CLIPTextModelWithProjection(config).eval()
    captions = [" ".join(["dog"] * 131 + [last]) for last in ("robot", "cat")]
    for length, tokens, alike in ((75, 77, True), (150, 154, False), (225, 154, False)):
        (one, other), pooled_BP = encode(encoder, tokenize(tokenizer, captions, length))  # type: ignore[arg-type]
        assert one.shape == (tokens, 32)
        assert torch.equal(one, other) is alike
        assert torch.equal(pooled_BP[0], pooled_BP[1])
    assert torch.equal(one[:77], other[:77])


@torch.no_grad()
def test_a_text_means_the_same_beside_longer_ones(tiny: Components) -> None:
    pipe = tiny.pipeline()
    prompts = ["a dog", LONG, LONGER]
    states, pooled_BP = encode_prompts(pipe, prompts, 225)
    assert [len(one) for one in states] == [32, 64, 96]
    assert align(states).shape[1] == 192

    def predict(hidden_BLC: torch.Tensor, pooled_BP: torch.Tensor) -> torch.Tensor:
        noisy_BCHW = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(
            len(hidden_BLC), -1, -1, -1
        )
        added = {"text_embeds": pooled_BP, "time_ids": torch.full((len(hidden_BLC), 6), 64.0)}
        sample: torch.Tensor = tiny.unet(
            noisy_BCHW, 500, encoder_hidden_states=hidden_BLC, added_cond_kwargs=added
        ).sample
        return sample

    together = predict(align(states), pooled_BP)
    alone = torch.cat([predict(one[None], pooled_BP[i : i + 1]) for i, one in enumerate(states)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_trained_encoders_get_gradients_from_every_chunk(components: Components) -> None:
    captions = ["a dog", LONG]
    denoiser = Denoiser(components.unet, *components.text_encoders).requires_grad_(True)

    def loss_of(captions: list[str]) -> torch.Tensor:
        one, two = (tokenize(tokenizer, captions, 150) for tokenizer in components.tokenizers)
        generator = torch.Generator().manual_seed(0)
        noisy_BCHW = torch.randn(2, 4, 8, 8, generator=generator)[: len(captions)]
        text = TextInputs((None, None), (one, two), None, torch.ones(len(captions)))
        predicted: torch.Tensor = denoiser(
            noisy_BCHW, torch.full((len(captions),), 500), text, torch.full((len(captions), 6), 64)
        )
        return predicted.square().mean()

    positions = components.text_encoders[0].get_parameter("embeddings.token_embedding.weight")
    loss_of(captions).backward()
    cat = components.tokenizers[0]("cat", add_special_tokens=False).input_ids[0]
    assert positions.grad is not None
    assert not positions.grad[cat].any()
    loss_of(["a dog", f"{LONG} cat"]).backward()
    assert positions.grad[cat].any()
    assert denoiser.text_encoder_1 is components.text_encoders[0]


@torch.no_grad()
@pytest.mark.parametrize("trained", [False, True])
def test_the_last_word_of_a_long_caption_changes_the_loss(tiny: Components, recipe: Recipe, trained: bool) -> None:
    def loss(last: str, length: int) -> float:
        changed = override(recipe, {"data.max_token_length": length})
        sources = [
            None if trained else TextSource(tokenizer, encoder, i == 1, None, changed.data.max_token_length)
            for i, (tokenizer, encoder) in enumerate(zip(tiny.tokenizers, tiny.text_encoders, strict=True))
        ]
        parts = BatchEncoder(
            recipe=changed,
            diffusion=Diffusion.of(tiny.scheduler.config, changed.objective),
            vae_config=tiny.vae.config,
            tokenizers=tiny.tokenizers,
            latents=LatentSource(tiny.vae, lambda view: Image.new("RGB", (32, 32), "red"), None),
            text=(sources[0], sources[1]),
            zero_empty_prompt=True,
        )
        image = DatasetImage("0" * 64, "0.png", f"{LONG} {last}", 32, 32, "instance")
        view = View(image, (32, 32), (32, 32), (0, 0), False)
        inputs = parts.inputs([Example(view, image.caption, False, 1.0, 0)], 0, 0)
        return float(parts.losses(Denoiser(tiny.unet, *(tiny.text_encoders if trained else ())), inputs))

    assert loss("cat", 75) == loss("frog", 75)
    assert loss("cat", 150) != loss("cat", 75)
    assert loss("cat", 150) != loss("frog", 150)


def test_a_longer_length_does_not_read_the_cache_of_a_shorter_one(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    quick = override(recipe, {"optim.steps": 1, "data.prompt": f"{LONG} cat", "checkpoint.keep_best": False})
    short, long = (
        train(override(quick, {"data.max_token_length": length}), str(length), cache=tmp_path / "cache").losses
        for length in (75, 150)
    )
    assert short != long


def test_images_of_long_prompts_do_not_depend_on_their_neighbours(tiny: Components) -> None:
    prompts, quick = (
        ["a dog", LONG, LONGER],
        {"num_inference_steps": 2, "guidance_scale": 4.0, "height": 32, "width": 32},
    )

    def images(batch_size: int, length: int = 225) -> list[np.ndarray]:
        drawn = generate(
            tiny.pipeline(), prompts, seeds=[1, 2, 3], negative_prompt=LONG, batch_size=batch_size,
            max_token_length=length, **quick,  # type: ignore[arg-type]
        )  # fmt: skip
        return [np.asarray(image, np.int16) for image in drawn]

    together, alone = images(3), images(1)
    assert max(np.abs(a - b).max() for a, b in zip(together, alone, strict=True)) <= 1
    assert np.abs(alone[2] - images(1, 75)[2]).max() > 3


def test_what_is_cut_off_is_found_with_its_tokens_and_the_fix(tiny: Components) -> None:
    texts = ["a dog", "dog " * 30, "dog " * 30 + "A Red  Robot", "dog " * 70, "dog " * 91, "a dog"]
    found = truncations(tiny.tokenizers, texts, 75)
    assert {text: (cut.tokens, cut.used, cut.lost) for text, cut in found.items()} == {
        texts[2]: (33, 30, "A Red  Robot"),
        texts[3]: (70, 30, "dog " * 40),
        texts[4]: (91, 30, "dog " * 61),
    }
    assert [cut.fix("length=") for cut in found.values()] == [
        "length=150 uses it all",
        "length=225 uses it all",
        "length=225 uses 90, shorten it to 90 tokens",
    ]
    assert truncations(tiny.tokenizers, texts, 225)[texts[4]].fix("length=") == "shorten it to 90 tokens"
    assert found[texts[4]].shown.endswith(" and 44 characters more")


def test_a_run_says_what_it_will_not_use(recipe: Recipe, tiny: Components) -> None:
    captions = ["a dog", "dog " * 31, "dog " * 40 + "a robot", "dog " * 31]
    (note,) = training_notes(recipe, tiny.files, captions)
    assert note.startswith("3 of 4 captions are longer than the 30 tokens that are used; the longest has 42; cut off: ")
    assert note.endswith("a robot'; data.max_token_length=150 uses it all")
    assert training_notes(override(recipe, {"data.max_token_length": 150}), tiny.files, captions) == []
    prior = {"data.prior": {"prompt": "a dog " * 16}, "evaluation.prompts": ["sks dog " * 20]}
    notes = training_notes(override(recipe, prior), tiny.files, ["a dog"])
    assert [note.split(" has ")[0] for note in notes] == ["a sample prompt", "the class prompt"]
