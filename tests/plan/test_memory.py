"""Bytes of a training step, added up by hand."""

from __future__ import annotations

from typing import Any

import pytest

from sdxl_ray.errors import UserError
from sdxl_ray.plan import Plan, zero_settings
from sdxl_ray.plan.memory import CONTEXT_BYTES, FRAGMENTATION
from tests.plan.known import UNET, adapters, plain, recipe


def full_by_hand(stage: int, workers: int) -> tuple[int, int, int]:
    """(weights, optimizer, everything but activations in the optimizer's step) of full AdamW in bf16.

    P = 2,567,463,684. Stage 0 keeps fp32 weights (4P), gradients (4P) and moments (8P). Stages 1 and 2 keep bf16
    weights (2P) and of every trained scalar's fp32 weight and two moments (12 bytes) a worker's share; in the step
    its share of gradients exists in bf16, in bf16 flattened, and in fp32 (2 + 2 + 4). Stage 3 splits the weights
    too, and its gradients are flat already (2 + 4).
    """
    share = -(-UNET // workers)
    if stage == 0:
        return 4 * UNET, 8 * UNET, 4 * UNET + 8 * UNET + 4 * UNET
    weights = 2 * (share if stage == 3 else UNET)
    gradients = (2 + 4 if stage == 3 else 2 + 2 + 4) * share
    return weights, 12 * share, weights + 12 * share + gradients


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("workers", [1, 4, 8])
def test_full_tuning_by_hand(stage: int, workers: int) -> None:
    plan = Plan.of(plain("dreambooth", batch=8, parallel__zero_stage=stage), "h200", workers=workers)
    weights, optimizer, step = full_by_hand(stage, workers)
    phase = plan.memory.phase("step")
    assert phase.parts["weights"] == weights
    assert phase.parts["optimizer"] == optimizer
    assert phase.total == step


def test_full_tuning_in_figures() -> None:
    """ZeRO-2 on 4 workers: 5.13 GB weights + 30.81 / 4 GB optimizer; 20.54 / 4 GB more in the step: 17.97 GB."""
    plan = Plan.of(plain("dreambooth", batch=4, parallel__zero_stage=2), "h100", workers=4)
    assert round(plan.memory.phase("step").total / 1e9, 2) == 17.97


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_lora_by_hand(stage: int) -> None:
    """r16, AdamW, 2 workers: A = 23,224,320 adapters beside U frozen weights in bf16."""
    a, share = 23_224_320, 11_612_160
    plan = Plan.of(plain("lora", batch=2, parallel__zero_stage=stage), "h100", workers=2)
    phase = plan.memory.phase("step")
    weights = {0: 2 * UNET + 4 * a, 1: 2 * (UNET + a), 2: 2 * (UNET + a), 3: UNET + a}[stage]
    optimizer = {0: 8 * a, 1: 12 * share, 2: 12 * share, 3: 12 * share}[stage]
    gradients = {0: 4 * a, 1: 8 * share, 2: 8 * share, 3: 6 * share}[stage]
    assert (phase.parts["weights"], phase.parts["optimizer"], phase.parts["gradients"]) == (
        weights,
        optimizer,
        gradients,
    )


def test_offload_by_hand() -> None:
    """2 workers: fp32 weights, gradients and moments of half the scalars lie in CPU memory, 16 bytes each."""
    changes = {"parallel__zero_stage": 3, "parallel__offload_optimizer": True, "parallel__offload_parameters": True}
    memory = Plan.of(plain("dreambooth", batch=2, **changes), "4090", workers=2).memory
    assert memory.host_bytes == (16 + 2) * UNET // 2
    assert memory.phase("step").parts["optimizer"] == memory.phase("step").parts["weights"] == 0


def test_needed_is_the_peak_and_what_no_allocator_counts() -> None:
    memory = Plan.of(recipe(), "h100").memory
    assert memory.needed_bytes == memory.peak.total + CONTEXT_BYTES + round(FRAGMENTATION * memory.peak.total)
    assert memory.allocated_bytes == max(phase.total for phase in memory.phases)


def test_activations_grow_with_pixels_and_shrink_with_checkpointing() -> None:
    def kept(**changes: Any) -> int:
        return Plan.of(plain("lora", **changes), "h100").memory.phase("forward and backward").parts["activations"]

    whole = kept()
    assert 5.0e9 < whole < 6.5e9  # 345 kB of 16-bit numbers for each of 16,384 latent pixels
    assert kept(batch=4) == pytest.approx(4 * whole, rel=0.01)
    assert kept(data__resolution=512) == pytest.approx(whole / 4, rel=0.05)
    assert kept(parallel__gradient_checkpointing=True) < whole / 8
    assert kept(tuning__rank=64) > whole
    longer = kept(data__max_token_length=150)
    keys_and_values = 2 * (10 * 640 + 60 * 1280)
    assert longer - whole == keys_and_values * 77 * 2
    assert kept(data__max_token_length=225) - whole == 5 * (longer - whole)  # two and three chunks meet at six
    encoders = {"tuning__text_encoders": [1, 2], "data__max_token_length": 150}
    assert kept(**encoders) - longer > 1.8 * (kept(tuning__text_encoders=[1, 2]) - whole)
    assert kept(parallel__precision="fp32") == pytest.approx(2 * whole, rel=0.001)


def test_every_stage_needs_no_more_than_the_one_before() -> None:
    rows = {row["layout"]: row for row in Plan.of(recipe("dreambooth"), "h100").rows()}
    layouts = ("data parallel", "ZeRO-1", "ZeRO-2", "ZeRO-3")
    needed = [rows[layout]["training"] for layout in layouts]
    assert needed == sorted(needed, reverse=True)
    assert rows["ZeRO-2, optimizer on CPU"]["training"] < rows["ZeRO-2"]["training"]
    assert rows["ZeRO-3, all on CPU"]["training"] < rows["ZeRO-3, optimizer on CPU"]["training"]
    assert [row["layout"] for row in rows.values() if row["chosen"]] == ["ZeRO-2"]


@pytest.mark.parametrize(
    ("name", "state"), [("adamw", 12), ("adamw8bit", 4 + 2 + 8 / 256), ("adafactor", 8), ("prodigy", 20)]
)
def test_optimizers(name: str, state: float) -> None:
    rate = {"optim__lr": 1.0} if name == "prodigy" else {}
    plan = Plan.of(plain("dreambooth", optim__name=name, **rate), "h200")
    assert plan.memory.phase("step").parts["optimizer"] == pytest.approx(state * UNET, rel=1e-6)


def test_average_and_live_encoders_are_held() -> None:
    quiet, averaged = (Plan.of(plain("dreambooth", optim__ema_decay=ema), "h200").memory for ema in (None, 0.999))
    assert averaged.phase("step").parts["ema"] == 4 * UNET
    assert averaged.training_bytes == quiet.training_bytes + 4 * UNET
    live = Plan.of(plain("dreambooth", data__cache_latents=False), "h200").memory
    assert live.phase("step").parts["encoders"] == 4 * 83_653_863 + 2 * (123_060_480 + 694_659_840)


def test_trained_text_encoders() -> None:
    one = Plan.of(plain("dreambooth", tuning__text_encoders=[1]), "h200")
    # The last layer and the final norm of encoder 1 are never read, so they do not train.
    layer = 4 * (768 * 768 + 768) + 768 * 3072 + 3072 + 3072 * 768 + 768 + 4 * 768
    assert one.trainable == UNET + 123_060_480 - layer - 2 * 768
    both = Plan.of(plain("lora", tuning__text_encoders=[1, 2]), "h100")
    # Four layers of d -> d in 11 read layers of 768 and 32 of 1280.
    assert both.trainable == adapters(16) + 16 * 4 * 2 * (11 * 768 + 32 * 1280)
    none = Plan.of(plain("lora"), "h100")
    kept = [p.memory.phase("forward and backward").parts["activations"] for p in (none, both)]
    assert kept[1] > kept[0]


def test_ranks_by_pattern_and_dora() -> None:
    wide = Plan.of(recipe(tuning__rank_pattern={"mid_block.*to_q": 32}), "h100").trainable
    assert wide == adapters(16) + 10 * 16 * ((1280 + 1280) + (1280 + 1280))
    dora = Plan.of(recipe(tuning__use_dora=True), "h100").trainable
    assert dora == adapters(16) + sum(n * 8 * d for n, d in ((10, 640), (60, 1280)))


def test_unknown_target_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"tuning.target_modules 'to_qq' matches no layer of the unet: did you mean 'to_q'"
    ):
        Plan.of(recipe(tuning__target_modules=["to_qq"]), "h100")


def test_zero_settings_are_what_plans_count_with() -> None:
    assert zero_settings(23_224_320, 2) == {"reduce_bucket_size": 23_224_320, "allgather_bucket_size": 23_224_320}
    assert zero_settings(UNET, 3)["reduce_bucket_size"] == 100_000_000
