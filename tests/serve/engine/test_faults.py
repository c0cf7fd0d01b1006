"""What fails half way leaves nothing behind: no other mix of adapters, and no memory of adapters that are gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import RunError
from sdxl_ray.io.artifact import Artifact
from serve.engine.adapter import AdapterStrength, LoadedAdapter, LoraPair
from serve.engine.engine import ServingEngine
from serve.engine.multi_lora import LoraLayers
from serve.engine.request import AdapterUse, EngineFault, ImageRequest
from serve.engine.stages import probe
from tests.serve.engine.plain import Plain, levels, running, small
from tests.serve.engine.test_batching import Progress


def _with(*names: str, seed: int = 1, steps: int = 3, **changes: Any) -> ImageRequest:
    uses = tuple(AdapterUse(name, 0.7) for name in names)
    return ImageRequest("a dog", seed, num_inference_steps=steps, adapters=uses, **changes)


async def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        await asyncio.sleep(0.005)
    assert true()


@pytest.mark.parametrize("uniform", [False, True])
def test_layers_that_could_not_be_laid_out_hold_nothing(uniform: bool) -> None:
    def adapter(name: str, seed: int, inner: int = 4) -> LoadedAdapter:
        draw = torch.Generator().manual_seed(seed)
        pairs = {
            layer: LoraPair(torch.randn(2, of, generator=draw), torch.randn(4, 2, generator=draw))
            for layer, of in (("0", 4), ("1", inner))
        }
        return LoadedAdapter(name, name, {"unet": pairs}, {}, 0.0)

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(1, 4)
    layers = LoraLayers(model, "unet", uniform=uniform)
    one, other, broken = adapter("one", 0), adapter("other", 1), adapter("broken", 2, inner=3)

    def drawn(*used: LoadedAdapter) -> torch.Tensor:
        layers.activate(used)
        layers.use(layers.masks([[AdapterStrength(each, 1.0) for each in used]], x.device))
        y: torch.Tensor = model(x)
        return y

    base, expected = model(x), drawn(one, other)
    assert not torch.allclose(base, expected)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        layers.activate([one, broken])  # its second layer does not fit beside the first adapter's
    assert layers.active == ()
    assert torch.equal(model(x), base)
    assert torch.equal(drawn(one, other), expected)


def test_a_failed_activation_changes_no_other_image(plain: Plain, loras: dict[str, Artifact]) -> None:
    long = _with("round", steps=40, height=40, width=40)

    async def main() -> None:
        async with running(ServingEngine(Base(), adapters=loras, settings=small())) as engine:
            progress = Progress()
            first = asyncio.create_task(engine.draw(long, on_step=progress))
            await progress.reach(2)
            lora = engine._stages.denoiser._lora
            lay, left = lora._lay, [5]

            def full(*given: Any) -> None:
                left[0] -= 1
                if left[0] == 0:
                    raise torch.OutOfMemoryError("no room")
                lay(*given)

            lora._lay = full  # type: ignore[method-assign]
            with pytest.raises(RunError, match="no room"):
                await engine.draw(_with("sharp"))
            assert not first.done()
            again = await engine.draw(_with("sharp"))
            assert levels(again.image, plain.draw(_with("sharp"))) <= 1
            assert levels((await first).image, plain.draw(long)) <= 1

    asyncio.run(main())


def test_an_evicted_adapter_leaves_the_layers_too(loras: dict[str, Artifact]) -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), adapters=loras, settings=small(max_cached_adapters=1))) as engine:
            lora = engine._stages.denoiser._lora

            def laid_out() -> set[str]:
                return {one.name for one in lora.active}

            await engine.draw(_with("wordy"))
            await engine.remove_adapter("wordy")
            await _until(lambda: not laid_out())  # although nothing is drawn
            await engine.draw(_with("round"))
            progress = Progress()
            base = asyncio.create_task(engine.draw(_with(steps=1000), on_step=progress))
            await progress.reach(1)
            assert laid_out() == {"round"}
            await engine.remove_adapter("round")
            await _until(lambda: not laid_out())  # while the base goes on
            base.cancel()

    asyncio.run(main())


def test_what_fails_in_the_engine_is_no_fault_of_the_request(loras: dict[str, Artifact]) -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), adapters=loras, settings=small())) as engine:
            await engine.check()
            denoiser = engine._stages.denoiser
            unet, denoiser._unet = denoiser._unet, None
            with pytest.raises(EngineFault, match="a denoising step failed: TypeError: 'NoneType'"):
                await engine.draw(_with())
            denoiser._unet = unet
            await engine.draw(_with())
            await engine.check()  # one failed step is no reason to go

            def broken() -> None:
                raise AssertionError

            denoiser._board = broken  # type: ignore[method-assign]
            with pytest.raises(EngineFault, match="denoising failed: AssertionError"):
                await engine.draw(_with())
            await asyncio.to_thread(denoiser._thread.join)
            with pytest.raises(EngineFault, match="denoising failed"):  # at once, not at its deadline
                await engine.draw(_with())
            with pytest.raises(EngineFault, match="the denoising thread has ended"):
                await engine.check()

    asyncio.run(main())


def test_a_device_that_does_not_compute_is_seen() -> None:
    probe(torch.device("cpu"))
    with pytest.raises(EngineFault, match="device cuda:77 failed: "):  # no machine has so many
        probe(torch.device("cuda:77"))
