"""What trains and what the denoiser is fed: the right weights move, the others do not, and conditioning is SDXL's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdxl_ray.config.schema import FullTuning, LoraTuning
from sdxl_ray.errors import UserError
from sdxl_ray.models.adapters import TUNINGS, Trainable, denoiser_of
from sdxl_ray.models.base_model import Components
from sdxl_ray.models.denoiser import Denoiser, TextInputs
from sdxl_ray.models.text_encoders import encode_captions, tokenize


def prepare(components: Components, tuning: LoraTuning | FullTuning, seed: int = 0) -> tuple[Denoiser, Trainable]:
    denoiser = denoiser_of(components, tuning)
    return denoiser, TUNINGS[type(tuning)].prepare(denoiser, tuning, seed)


def text_inputs(components: Components, captions: list[str], keep: list[float], trained: bool) -> TextInputs:
    rows = [encode_captions(components.tokenizers[i], components.text_encoders[i], captions, i == 1) for i in range(2)]
    hidden = tuple(torch.stack([row["hidden"] for row in part]) for part in rows)
    ids = tuple(tokenize(tokenizer, captions) for tokenizer in components.tokenizers)
    pooled_BP = torch.stack([row["pooled"] for row in rows[1]])
    if trained:
        return TextInputs((None, None), (ids[0], ids[1]), None, torch.tensor(keep))
    return TextInputs((hidden[0], hidden[1]), (None, None), pooled_BP, torch.tensor(keep))


def forward(denoiser: Denoiser, text: TextInputs, size: int = 1024) -> torch.Tensor:
    noisy_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    time_ids_B6 = torch.tensor([[size, size, 0, 0, 32, 32], [32, 32, 4, 0, 32, 32]])
    prediction: torch.Tensor = denoiser(noisy_BCHW, torch.tensor([3, 700]), text, time_ids_B6)
    return prediction


def test_text_is_what_the_pipeline_encodes(tiny: Components) -> None:
    captions = ["a photo of sks dog", "a teapot"]
    hidden_BLC, _, pooled_BP, _ = tiny.pipeline().encode_prompt(captions, do_classifier_free_guidance=False)
    text = text_inputs(tiny, captions, [1.0, 1.0], trained=False)
    assert text.hidden[0] is not None
    assert text.hidden[1] is not None
    assert text.pooled_BP is not None
    assert torch.equal(torch.cat([text.hidden[0], text.hidden[1]], dim=-1), hidden_BLC)
    assert torch.equal(text.pooled_BP, pooled_BP)


def test_the_denoiser_is_the_unet_conditioned_as_the_pipeline_does(tiny: Components) -> None:
    text = text_inputs(tiny, ["a dog", "a cat"], [1.0, 0.0], trained=False)
    with torch.no_grad():
        ours = forward(Denoiser(tiny.unet), text)
        pipe = tiny.pipeline()
        hidden_BLC, _, pooled_BP, _ = pipe.encode_prompt(["a dog", "a cat"], do_classifier_free_guidance=False)
        hidden_BLC[1], pooled_BP[1] = 0, 0  # a dropped caption drops the pooled vector too
        theirs = tiny.unet(
            torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
            torch.tensor([3, 700]),
            encoder_hidden_states=hidden_BLC,
            added_cond_kwargs={
                "text_embeds": pooled_BP,
                "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 32, 32], [32, 32, 4, 0, 32, 32]]),
            },
        ).sample
        assert torch.equal(ours, theirs)
        # The encoders inside give what they gave outside.
        inside = forward(
            Denoiser(tiny.unet, *tiny.text_encoders), text_inputs(tiny, ["a dog", "a cat"], [1.0, 0.0], trained=True)
        )
    assert torch.equal(inside, ours)


def test_sizes_are_embedded_in_fp32(components: Components) -> None:
    """1024 and 1025 are the same number in bf16; embedded first, they differ."""
    denoiser = Denoiser(components.unet.to(torch.bfloat16))
    text = text_inputs(components, ["a dog", "a cat"], [1.0, 1.0], trained=False)
    assert torch.tensor(1024).bfloat16() == torch.tensor(1025).bfloat16()
    seen: list[torch.Tensor] = []
    components.unet.add_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        forward(denoiser, text, 1024)
        forward(denoiser, text, 1025)
    assert seen[0].dtype == torch.bfloat16
    assert not torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


def expected_lora_count(model: nn.Module, tails: tuple[str, ...], rank: int) -> int:
    layers = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(tails)]
    assert layers
    return sum(rank * (m.in_features + m.out_features) for m in layers)


def test_lora_trains_as_many_numbers_as_arithmetic_says(components: Components) -> None:
    expected = expected_lora_count(components.unet, ("to_q", "to_k", "to_v", "to_out.0"), 4)
    # By hand: a block of width w has self-attention (4 layers, w -> w), and cross-attention with q, out (w -> w) and
    # k, v (192 -> w). Blocks: two down, one mid, four up (two a level); widths 64, 128, 128, 128 x 2, 64 x 2.
    widths = [64, 128, 128, 128, 128, 64, 64]
    assert expected == sum(4 * (6 * 2 * w + 2 * (192 + w)) for w in widths)
    _, trainable = prepare(components, LoraTuning(rank=4))
    assert trainable.count == expected
    assert trainable.text == []
    assert all("lora_" in name for name, _ in trainable.named)


def test_full_tuning_trains_every_unet_weight_and_the_live_text_weights(components: Components) -> None:
    denoiser, trainable = prepare(components, FullTuning(text_encoders=(1, 2)))
    assert [n for n, _ in trainable.unet] == [f"unet.{n}" for n, _ in components.unet.named_parameters()]
    text = text_inputs(components, ["a dog", "a cat"], [1.0, 1.0], trained=True)
    forward(denoiser, text).square().mean().backward()
    assert [n for n, p in trainable.named if p.grad is None] == []
    one = components.text_encoders[0]
    dead = {n for n, p in one.named_parameters() if not p.requires_grad}
    assert all("layers.1." in n or "final_layer_norm" in n for n in dead)
    assert len(dead) == 16 + 2  # four projections, two of the MLP, two norms, each with a bias; and the final norm
    assert all(p.requires_grad for p in components.text_encoders[1].parameters())
    assert not any(p.requires_grad for p in components.vae.parameters())


def test_text_encoder_adapters_leave_out_the_layer_that_is_not_read(components: Components) -> None:
    denoiser, trainable = prepare(components, LoraTuning(rank=2, text_encoders=(1, 2)))
    names = [n for n, _ in trainable.text]
    assert not any(n.startswith("text_encoder_1") and "layers.1." in n for n in names)
    assert any(n.startswith("text_encoder_2") and "layers.2." in n for n in names)
    text = text_inputs(components, ["a dog", "a cat"], [1.0, 1.0], trained=True)
    forward(denoiser, text).square().mean().backward()
    assert [n for n, p in trainable.named if p.grad is None] == []


def test_an_adapter_starts_as_the_base_and_from_its_seed(tiny: Components, components: Components) -> None:
    text = text_inputs(tiny, ["a dog", "a cat"], [1.0, 1.0], trained=False)
    ambient = torch.get_rng_state()
    denoiser, trainable = prepare(components, LoraTuning(rank=2), seed=5)
    assert torch.equal(torch.get_rng_state(), ambient)
    with torch.no_grad():
        assert torch.equal(forward(denoiser, text), forward(Denoiser(tiny.unet), text))
    again = prepare(Components(**{**vars(components), "unet": _copy(tiny.unet)}), LoraTuning(rank=2), seed=5)[1]
    other = prepare(Components(**{**vars(components), "unet": _copy(tiny.unet)}), LoraTuning(rank=2), seed=6)[1]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(trainable.named, again.named, strict=True))
    assert not all(torch.equal(a, b) for (_, a), (_, b) in zip(trainable.named, other.named, strict=True))


def _copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def test_ranks_and_strengths_by_pattern(components: Components) -> None:
    tuning = LoraTuning(
        rank=4,
        rank_pattern={"attn1.to_q": 8, "attn2.to_k": 2, "self_attn.q_proj": 3},
        alpha_pattern={"attn2.to_k": 1.0},
        text_encoders=(2,),
    )
    prepare(components, tuning)
    found = {}
    for model in (components.unet, components.text_encoders[1]):
        for name, module in model.named_modules():
            if hasattr(module, "lora_A") and hasattr(module, "scaling"):
                found[name.split(".", 1)[-1]] = (module.r["default"], module.scaling["default"])
    assert {v for k, v in found.items() if k.endswith("attn1.to_q")} == {(8, 1.0)}
    assert {v for k, v in found.items() if k.endswith("attn2.to_k")} == {(2, 0.5)}
    assert {v for k, v in found.items() if k.endswith("attn1.to_k")} == {(4, 1.0)}
    assert {v for k, v in found.items() if k.endswith("q_proj")} == {(3, 1.0)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": ("to_qq",)},
            r"tuning.target_modules 'to_qq' matches no layer of the unet: did you mean 'to_q'\?",
        ),
        (
            {"text_encoders": (1,), "text_target_modules": ("query",)},
            "tuning.text_target_modules 'query' matches no layer of the te",
        ),
        ({"rank_pattern": {"attn9": 4}}, "tuning.rank_pattern 'attn9' matches none of the 56 adapted layers"),
        ({"alpha_pattern": {"ff.net": 4}}, "tuning.alpha_pattern 'ff.net' matches none"),
        ({"rank_pattern": {"attn1.(": 4}}, r"tuning.rank_pattern 'attn1.\(' is no regular expression"),
    ],
)
def test_what_matches_nothing_is_refused(components: Components, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(components, LoraTuning(**settings))
