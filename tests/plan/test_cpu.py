"""A CPU: offloaded state is in the same memory, workers of one machine share it, and 16 bits may be slow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdxl_ray.cli.devices import cpu_here
from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.recipe import override
from sdxl_ray.doctor.machine import has_amx_bf16
from sdxl_ray.plan import CPU, DoesNotFit, Plan
from tests.conftest import Here
from tests.plan.known import UNET, plain, recipe

GIB = 1024**3
MACHINE = replace(CPU, memory_bytes=24 * GIB, shared=True)


def test_what_is_offloaded_counts() -> None:
    """fp32 weights, moments and gradients of the whole UNet, 16 bytes each, wherever DeepSpeed puts them."""
    held = Plan.of(plain("dreambooth", parallel__offload_optimizer=False), CPU).memory
    moved = Plan.of(plain("dreambooth", parallel__offload_optimizer=True), CPU).memory
    assert moved.host_bytes == 0
    assert moved.phase("step").parts["offloaded"] == 16 * UNET
    assert moved.needed_bytes > 50 * GIB
    assert moved.training_bytes > 0.8 * held.training_bytes
    with pytest.raises(DoesNotFit, match=r"it has 24\.0 GiB"):
        Plan.of(recipe("dreambooth", parallel__offload_optimizer=True, parallel__workers=1), MACHINE).check()


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("memory", [12, 20, 24, 40])
@pytest.mark.parametrize("name", ["lora", "dreambooth", "dreambooth_lora"])
def test_advice_leads_to_a_plan_that_fits(name: str, workers: int, memory: int) -> None:
    machine = replace(MACHINE, memory_bytes=memory * GIB)
    tight = recipe(name, parallel__workers=workers, optim__batch_size=8)
    plan = Plan.of(tight, machine)
    assert plan.limit_bytes == memory * GIB // workers
    try:
        plan.check()
    except DoesNotFit as error:
        assert (f"({memory}.0 GiB for {workers} workers)" in str(error)) == (workers > 1)
        for remedy in error.remedies:
            Plan.of(override(tight, recipe_files.parse_assignments(str(remedy).split())), machine).check()
    for choice in plan.advice.choices:
        assert choice.limit_bytes == machine.limit_bytes(choice.workers)


def test_sixteen_bits_without_amx_are_slow_and_said_to_be(here: Here, tmp_path: Path) -> None:
    half, whole = recipe(parallel__precision="bf16"), recipe(parallel__precision="fp32")
    slow, quick = Plan.of(half, CPU), Plan.of(half, replace(CPU, bf16=True))
    assert slow.duration.floor_s > 3 * quick.duration.floor_s
    assert slow.duration.floor_s > 3 * Plan.of(whole, CPU).duration.floor_s
    assert "without AMX" in slow.warnings[0]
    assert quick.warnings == Plan.of(whole, CPU).warnings == ()
    words = ("tiny_lora", "--gpu", "cpu", "parallel.precision=bf16")
    assert "note: parallel.precision=bf16: a CPU without AMX" in here("plan", *words)[2]
    for flags, has in (("fpu amx_bf16 amx_tile", True), ("fpu avx512f", False)):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        assert has_amx_bf16(tmp_path / "cpuinfo") is has
    assert cpu_here().bf16 is has_amx_bf16()
