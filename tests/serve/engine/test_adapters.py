"""Adapters come and go while images are drawn; wrong ones are refused in one line."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.models.pipeline import LORA_WEIGHTS, generate, load_pipeline
from serve.engine.adapter import LayerPlaces, load_adapter
from serve.engine.engine import ServingEngine
from serve.engine.request import AdapterUse, ImageRequest
from serve.engine.warmup import PARTS
from tests.serve.engine.plain import Plain, draw_with, levels, make_lora, manifest, running, small
from tests.serve.engine.test_batching import Progress


def _with(*names: str, seed: int = 1, steps: int = 3, **changes: Any) -> ImageRequest:
    uses = tuple(AdapterUse(name, 0.7) for name in names)
    return ImageRequest("a dog", seed, num_inference_steps=steps, adapters=uses, **changes)


def test_the_least_recently_used_goes_but_never_one_in_flight(plain: Plain, loras: dict[str, Artifact]) -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), adapters=loras, settings=small(max_cached_adapters=2))) as engine:
            for name in ("round", "sharp", "round", "wordy"):
                await engine.draw(_with(name))
            assert engine.status()["resident"] == ["round", "wordy"]
            progress = Progress()
            long = asyncio.create_task(engine.draw(_with("round", "wordy", steps=1000), on_step=progress))
            await progress.reach(1)
            third = asyncio.create_task(engine.draw(_with("sharp")))
            impatient = asyncio.create_task(engine.draw(_with("sharp")))
            await engine.draw(_with())  # the base needs no room
            assert not third.done()
            assert engine.status()["resident"] == ["round", "wordy"]
            impatient.cancel()
            long.cancel()
            drawn = await third
            assert levels(drawn.image, plain.draw(_with("sharp"))) <= 1
            assert engine.status()["adapter_evictions"] == 2
            with pytest.raises(UserError, match="3 adapters in one image, but at most 2 fit"):
                await engine.draw(_with("round", "sharp", "wordy"))

    asyncio.run(main())


def test_loading_an_adapter_again_and_again_takes_no_memory(loras: dict[str, Artifact]) -> None:
    pipe = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
    places = LayerPlaces.of({part: getattr(pipe, part) for part in PARTS})

    def load() -> None:
        load_adapter("wordy", loras["wordy"], Base(), places, torch.float32, torch.device("cpu"))

    load()
    tracemalloc.start(1)
    try:
        load()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(10):
            load()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 10 * 1024
    finally:
        tracemalloc.stop()


def test_adapters_are_added_and_removed_under_traffic(plain: Plain, loras: dict[str, Artifact], tmp_path: Path) -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), adapters={"round": loras["round"]}, settings=small())) as engine:
            traffic = asyncio.gather(*[engine.draw(_with(*["round"] * (i % 2), seed=i, steps=12)) for i in range(6)])
            await engine.add_adapter("sharp", loras["sharp"])
            with pytest.raises(UserError, match="adapter 'sharp' is there already"):
                await engine.add_adapter("sharp", loras["sharp"])
            progress = Progress()
            last = asyncio.create_task(engine.draw(_with("sharp", steps=12), on_step=progress))
            await progress.reach(2)
            await engine.remove_adapter("sharp")
            with pytest.raises(UserError, match="adapter 'sharp': choose from round"):
                await engine.draw(_with("sharp"))
            drawn = await last
            assert levels(drawn.image, plain.draw(_with("sharp", steps=12))) <= 1
            assert engine.status()["resident"] == ["round"]
            for i, one in enumerate(await traffic):
                expected = plain.draw(_with(*["round"] * (i % 2), seed=i, steps=12))
                assert levels(one.image, expected) <= 1
            # The same name may come back as another adapter; nothing of the first is remembered.
            await engine.add_adapter("sharp", loras["wordy"])
            again = await engine.draw(_with("sharp"))
            assert levels(again.image, plain.draw(_with("wordy"))) <= 1

    asyncio.run(main())


def test_no_strength_is_the_base(plain: Plain, loras: dict[str, Artifact]) -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), adapters=loras, settings=small())) as engine:
            idle = ImageRequest("a dog", 1, num_inference_steps=3, adapters=(AdapterUse("round", 0.0),))
            drawn = await engine.draw(idle)
            assert levels(drawn.image, plain.draw(_with())) == 0
            assert engine.status()["resident"] == []

    asyncio.run(main())


def test_an_adapter_brings_its_prediction(tmp_path: Path, loras: dict[str, Artifact]) -> None:
    recipe = {"objective": {"prediction": "v_prediction", "zero_terminal_snr": True}}
    artifact = make_lora(tmp_path / "v", "round", 5, recipe=recipe)
    pipe = load_pipeline(Base(), artifact, dtype=torch.float32, device="cpu")

    async def main() -> None:
        adapters = {"v": artifact, "round": loras["round"]}
        async with running(ServingEngine(Base(), adapters=adapters, settings=small())) as engine:
            use = (AdapterUse("v"),)
            for scheduler in ("default", "dpmpp_2m"):
                request = ImageRequest("a dog", 1, num_inference_steps=3, adapters=use, scheduler=scheduler)
                drawn, _ = await asyncio.gather(engine.draw(request), engine.draw(_with("round")))
                assert levels(drawn.image, draw_with(pipe, request)) <= 1
            with pytest.raises(UserError, match="adapters round, v were trained for different predictions"):
                await engine.draw(_with("v", "round"))

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["wordy", "dora"])
def test_a_fused_adapter_is_in_every_image(tmp_path: Path, loras: dict[str, Artifact], kind: str) -> None:
    artifact = loras["wordy"] if kind == "wordy" else make_lora(tmp_path / "dora", "round", 6, use_dora=True)
    pipe = load_pipeline(Base(), artifact, dtype=torch.float32, device="cpu")
    expected = generate(pipe, ["a dog"], seeds=[1], num_inference_steps=3, guidance_scale=7.5)[0]

    async def main() -> None:
        engine = ServingEngine(Base(), adapters={**loras, kind: artifact}, settings=small(), fuse=kind)
        async with running(engine):
            drawn = await engine.draw(_with())
            assert levels(drawn.image, expected) <= 1
            more = await engine.draw(_with("round"))  # others still come on top
            assert levels(more.image, expected) > 3
            with pytest.raises(UserError, match=f"adapter '{kind}' is merged into this engine's weights"):
                await engine.draw(_with(kind))

    asyncio.run(main())


def test_a_full_artifact_gives_the_weights(embedded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded, tmp_path / "full"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value * 1.05 for name, value in load_file(file).items()}, file, {"format": "pt"})
    artifact = manifest(folder, kind="full")
    pipe = load_pipeline(Base(), artifact, dtype=torch.float32, device="cpu")

    async def main() -> None:
        async with running(ServingEngine(Base(), artifact=artifact, settings=small())) as engine:
            drawn = await engine.draw(_with())
        assert levels(drawn.image, draw_with(pipe, _with())) == 0

    asyncio.run(main())
    with pytest.raises(UserError, match="is a full artifact, not a LoRA: serve it as a variant of its own"):
        ServingEngine(Base(), adapters={"full": artifact})


def _spoilt(source: Artifact, folder: Path, how: str) -> Artifact:
    """A copy of an adapter that cannot be served."""
    shutil.copytree(source.folder, folder)
    file = folder / LORA_WEIGHTS
    weights = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    key = next(name for name in weights if name.endswith("lora_A.weight"))
    if how == "nan":
        weights[key][0, 0] = float("nan")
    elif how == "shape":
        weights[key] = weights[key][:, :-1].contiguous()
    elif how == "half":
        del weights[key]
    elif how == "elsewhere":
        for tail in ("lora_A.weight", "lora_B.weight"):
            weights[f"unet.nowhere.{tail}"] = weights.pop(key.replace("lora_A.weight", tail))
    elif how == "bias":
        weights[key.replace("lora_A.weight", "lora_B.bias")] = torch.zeros(3)
    elif how == "dora":
        weights[key.replace("lora_A.weight", "lora_magnitude_vector")] = torch.ones(3)
    save_file(weights, file, metadata)
    return manifest(folder, revision="d" * 64 if how == "base" else None)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "holds NaN or infinity"),
        ("shape", r"has \[\d+, 4\] x \[4, \d+\], the layer"),
        ("half", "has one matrix of two"),
        ("elsewhere", "unet.nowhere is no linear or convolution layer of the base"),
        ("bias", "lora_B.bias is no low-rank pair"),
        ("dora", "is a DoRA, which cannot share a batch"),
        ("base", "was made on base 'tiny' at dddddddddddd"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused(
    loras: dict[str, Artifact], tmp_path: Path, how: str, message: str
) -> None:
    artifact = _spoilt(loras["round"], tmp_path / "spoilt", how)
    if how in ("bias", "dora", "base"):  # seen in the header, before anything is loaded
        with pytest.raises(UserError, match=message) as refused:
            ServingEngine(Base(), adapters={"bad": artifact})
        assert str(artifact.folder) in str(refused.value)
        return

    async def main() -> None:
        async with running(ServingEngine(Base(), settings=small())) as engine:
            with pytest.raises(UserError, match=message) as refused:
                await engine.add_adapter("bad", artifact)
            assert str(artifact.folder) in str(refused.value)
            with pytest.raises(UserError, match="adapter 'bad': there are none here"):
                await engine.draw(_with("bad"))

    asyncio.run(main())


def test_an_adapter_changed_on_disk_is_refused(loras: dict[str, Artifact], tmp_path: Path) -> None:
    folder = tmp_path / "changing"
    shutil.copytree(loras["round"].folder, folder)
    artifact = Artifact.open(folder)

    async def main() -> None:
        async with running(ServingEngine(Base(), adapters={"round": artifact}, settings=small())) as engine:
            file = folder / "manifest.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "step": 2}))
            with pytest.raises(UserError, match="was replaced by another artifact"):
                await engine.draw(_with("round"))
            manifest_again = {**json.loads(file.read_text()), "step": 1}
            file.write_text(json.dumps(manifest_again))
            await engine.draw(_with("round"))  # a failed load is not remembered

    asyncio.run(main())
