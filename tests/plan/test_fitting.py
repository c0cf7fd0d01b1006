"""What fits on which device, and what would make the rest fit."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.recipe import override
from sdxl_ray.errors import UserError
from sdxl_ray.plan import DEVICES, DoesNotFit, Plan, device, memory_bytes
from sdxl_ray.plan.devices import card
from sdxl_ray.plan.gpu_driver import Gpu
from tests.plan.known import plain, recipe


def test_shipped_recipes_fit_what_their_comments_say() -> None:
    Plan.of(recipe("lora"), device(memory="16GiB")).check()
    Plan.of(recipe("dreambooth"), "a100-40").check()
    for name in recipe_files.names():
        Plan.of(recipe_files.load(name), "h100").check()


def test_what_does_not_fit_names_settings_that_do() -> None:
    tight = plain("dreambooth", batch=4)
    plan = Plan.of(tight, "4090")
    with pytest.raises(DoesNotFit, match=r"full tuning needs .* GiB on each 4090 .*, it has 23.5 GiB: add ") as caught:
        plan.check()
    assert 1 <= len(caught.value.remedies) <= 3
    assert "\n" not in str(caught.value)
    for remedy in caught.value.remedies:
        changed = override(tight, recipe_files.parse_assignments(str(remedy).split()))
        again = Plan.of(changed, "4090")
        again.check()
        assert again.memory.needed_bytes == remedy.needed_bytes
        # Every setting named is needed: without any one of them it does not fit.
        for path in remedy.changes:
            less = {k: v for k, v in remedy.changes.items() if k != path}
            if less and path != "parallel.zero_stage":
                with suppress(UserError):  # some settings cannot be without the others
                    assert not Plan.of(override(tight, less), "4090").fits


def test_lora_that_only_lacks_checkpointing() -> None:
    plan = Plan.of(plain("lora", batch=4), "4090")
    with pytest.raises(DoesNotFit) as caught:
        plan.check()
    single = [remedy.changes for remedy in caught.value.remedies if len(remedy.changes) == 1]
    assert {"parallel.micro_batch": 1} in single or {"parallel.gradient_checkpointing": True} in single


def test_when_nothing_small_helps_a_larger_gpu_is_named() -> None:
    with pytest.raises(DoesNotFit, match="smallest GPU that does is"):
        Plan.of(recipe("dreambooth"), device(memory="2GiB")).check()


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 1024**3), ("24 GB", 24 * 10**9), ("24", 24 * 1024**3), ("0.5tib", 2**39), ("8192MiB", 2**33)],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "24 gigs", "nan", "1e9"])
def test_no_amounts_of_memory(text: str) -> None:
    with pytest.raises(UserError, match="is not an amount"):
        memory_bytes(text)


def test_devices() -> None:
    assert device("RTX 4090") is DEVICES["4090"]
    assert device("h100", "40GiB") == replace(DEVICES["h100"], memory_bytes=40 * 1024**3)
    with pytest.raises(UserError, match="did you mean 'h100'"):
        device("h10")
    with pytest.raises(UserError, match="no device"):
        device()
    assert list(DEVICES.values()) == sorted(DEVICES.values(), key=lambda d: d.memory_bytes)


@pytest.mark.parametrize(
    ("name", "mebibytes", "like"),
    [
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA GeForce RTX 4090", 24564, "4090"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "4060ti-16"),
        ("Tesla T4", 15360, "t4"),
        ("Tesla V100-SXM2-32GB", 32768, "v100-32"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100-40"),
        ("NVIDIA RTX A6000", 49140, "a6000"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, None),
        ("NVIDIA GeForce RTX 4080 SUPER", 16376, None),
        ("NVIDIA H100 NVL", 95830, None),
        ("NVIDIA L40", 46068, None),
        ("Quadro P5000", 16384, None),
    ],
)
def test_a_card_is_what_its_driver_says(name: str, mebibytes: int, like: str | None) -> None:
    found = card(Gpu(name, mebibytes))
    assert found.name == name
    notes = Plan.of(recipe(), found).assumptions
    if like is not None:
        assert found == replace(DEVICES[like], name=name)
    else:
        assert found.memory_bytes == mebibytes * 1024**2
    assert any("the slowest known GPU with as much memory" in note for note in notes) == (like is None)


def test_fp16_is_planned_where_it_can_be() -> None:
    rows = Plan.of(recipe(parallel__precision="fp16"), "t4").rows()
    assert [row["layout"] for row in rows][:2] == ["ZeRO-1", "ZeRO-2"]


def test_sixteen_bits_come_before_more_gpus() -> None:
    tight = recipe(parallel__gradient_checkpointing=False, parallel__micro_batch=1, optim__batch_size=1)
    with pytest.raises(DoesNotFit) as caught:
        Plan.of(tight, "t4").check()
    first = caught.value.remedies[0]
    assert first.changes["parallel.precision"] == "fp16"
    assert "parallel.workers" not in first.changes
    Plan.of(override(tight, first.changes), "t4").check()


def test_a_device_without_bf16_computes_in_fp32_or_fp16() -> None:
    assert Plan.of(recipe(), "t4").setting.precision == "fp32"
    with pytest.raises(UserError, match=r"no bf16; use parallel\.precision=fp16"):
        Plan.of(recipe(parallel__precision="bf16"), "t4")


@pytest.mark.parametrize(
    ("changes", "workers", "message"),
    [
        ({"data__resolution": 1020 + 1}, None, "not a multiple of 8"),
        ({}, 0, "workers is 0"),
        ({"parallel__engine": "local", "parallel__workers": 1}, 2, "one process"),
    ],
)
def test_refused(changes: dict[str, Any], workers: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Plan.of(recipe(**changes), "h100", workers=workers)
