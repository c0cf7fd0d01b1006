"""What a plan says of time, cost, images and the method to choose."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.errors import UserError
from sdxl_ray.plan import Plan
from tests.plan.known import UNET, plain, recipe


def test_batch_counts_class_images() -> None:
    s = Plan.of(recipe("dreambooth"), "h100").setting
    assert (s.global_batch, s.workers, s.accumulation, s.micro_batch) == (8, 4, 2, 1)


def test_cost_is_time_times_price_times_workers() -> None:
    plan = Plan.of(recipe("dreambooth"), "h100", workers=4, price_per_hour=2.0)
    assert plan.duration.cost is not None
    assert plan.duration.cost == pytest.approx([t / 3600 * 2.0 * 4 for t in plan.duration.total_s])
    low, high = plan.duration.total_s
    assert sum(span[0] for span in plan.duration.phases_s.values()) == pytest.approx(low)
    assert low < high
    assert any("assumed, not measured" in note for note in plan.assumptions)
    with pytest.raises(UserError, match="price per hour is -1"):
        Plan.of(recipe(), "h100", price_per_hour=-1)


def test_offloaded_state_is_stepped_at_the_cpus_pace() -> None:
    kept, offloaded = (
        Plan.of(plain("dreambooth", parallel__offload_optimizer=flag), "h100").duration.floor_s
        for flag in (False, True)
    )
    # 28 bytes a scalar at 30 instead of 3,352 GB/s, and 16-bit gradients out and weights in over 20 GB/s.
    assert offloaded - kept == pytest.approx(28 * UNET * (1 / 30e9 - 1 / 3352e9) + 4 * UNET / 20e9, rel=1e-6)


def test_class_images_take_time() -> None:
    phases = Plan.of(recipe("dreambooth"), "h100", workers=1).duration.phases_s
    # 200 images, 30 steps twice through the UNet and a decode, at half of 989 TFLOP/s.
    low = 200 * (60 * 6.7612e12 + 10.4704e12 + 0.1112e12) / (989e12 / 2)
    assert phases["class images"][0] == pytest.approx(low, rel=1e-3)


def test_the_plan_counts_scores_where_the_trainer_would_take_them() -> None:
    known = {"data.subject": "sks dog", "data.holdout": 2}
    one = recipe_files.override(recipe_files.load("lora"), known)
    scored = Plan.of(one, "h100", workers=1).duration.phases_s
    images = Plan.of(recipe("dreambooth"), "h100", workers=1).duration.phases_s["class images"]
    # 9 looks at 8 + 8 images, the base's first; 200 class images with the same settings.
    assert scored["scores"][0] == pytest.approx(images[0] * 9 * 16 / 200, rel=1e-6)
    for changes in (
        {"data.holdout": 1},
        {"data.subject": None},
        {"evaluation.scores": "never"},
        {"evaluation.every": 0},
    ):
        assert "scores" not in Plan.of(recipe_files.override(one, changes), "h100", workers=1).duration.phases_s


@pytest.mark.parametrize(
    ("changes", "images", "on", "advised"),
    [
        ({"data__subject": "sks dog", "data__class_name": "dog"}, 5, "h100", "dreambooth_lora"),
        ({"data__subject": "sks dog", "data__class_name": "dog"}, 5, "4090", "dreambooth_lora"),
        ({"data__subject": "sks dog"}, 5, "h100", "lora"),
        ({}, 40, "4090", "lora"),
        ({}, 5000, "h200", "dreambooth"),
        ({}, 5000, "l4", "lora"),
    ],
)
def test_advice(changes: dict[str, Any], images: int, on: str, advised: str) -> None:
    advice = Plan.of(recipe(**changes), on, images=images, workers=1).advice
    assert advice.recipe == advised
    assert advice.reasons
    assert {choice.recipe for choice in advice.choices} == {"lora", "dreambooth", "dreambooth_lora"}


def test_advice_on_the_embedded_base_names_its_recipes() -> None:
    changes = {"data__subject": "sks dog", "data__class_name": "dog"}
    assert Plan.of(recipe("tiny_lora", **changes), "cpu", images=5).advice.recipe == "tiny_dreambooth_lora"


def test_too_few_photos_are_told() -> None:
    advice = Plan.of(recipe(data__subject="sks dog", data__class_name="dog"), "h100", images=1).advice
    assert "add angles and backgrounds" in str(advice)


def test_a_plan_is_text_and_plain_data() -> None:
    plan = Plan.of(recipe("dreambooth"), "h100", price_per_hour=2.5, images=5)
    shown = plan.text()
    for piece in ("2,567,463,684", "ZeRO-3", "advice:", "cost:", "assumed:", "peak in"):
        assert piece in shown
    read = json.loads(json.dumps(plan.plain()))
    assert read["trainable"] == UNET
    assert read["memory"]["needed_bytes"] == plan.memory.needed_bytes
    assert len(read["layouts"]) == 7
