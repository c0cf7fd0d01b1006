"""A replica's own words, without Ray: the client's fault or the server's, and when it is to be replaced."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from sdxl_ray.config.schema import Base
from sdxl_ray.io.artifact import Artifact
from serve.config import ServeConfig
from serve.engine.engine import ServingEngine
from serve.engine.request import AdapterUse, EngineFault, ImageRequest
from serve.replica.messages import ImageOrder, Refusal
from serve.replica.replica import ModelReplica
from tests.serve.engine.plain import running, small


def _replica(engine: ServingEngine) -> ModelReplica:
    """One whose engine is there already."""
    replica = ModelReplica.__new__(ModelReplica)
    replica.name, replica.config, replica.engine = "weights", ServeConfig(), engine
    replica.hashes, replica.stopped = {}, {"lost": "no such folder"}
    return replica


def _order(variant: str = "base", **changes: object) -> ImageOrder:
    request = {"prompt": "a dog", "seed": 1, "num_inference_steps": 2, **changes}
    return ImageOrder(variant, ImageRequest(**request), "png", 60.0)  # type: ignore[arg-type]


def test_a_replica_says_whose_fault_it_is(artifacts: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifacts["round"], tmp_path / "round"))

    async def main() -> None:
        async with running(
            ServingEngine(Base(), adapters={"round": Artifact.open(folder)}, settings=small())
        ) as engine:
            replica = _replica(engine)

            async def reported(order: ImageOrder) -> tuple[int, str, str | None]:
                refusal = await replica.draw(order)
                assert isinstance(refusal, Refusal)
                assert str(tmp_path) not in refusal.message
                return refusal.status, refusal.code, refusal.param

            assert await reported(_order(scheduler="none")) == (400, "invalid_value", "scheduler")
            assert await reported(_order(guidance_scale=1e38)) == (422, "not_drawn", None)
            assert await reported(_order("lost")) == (404, "model_stopped", "model")
            manifest = folder / "manifest.json"
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "step": 2}))
            assert await reported(_order(adapters=(AdapterUse("round"),))) == (503, "adapter_broken", None)
            await replica.check_health()
            engine._stages.denoiser._unet = None
            assert await reported(_order()) == (503, "engine_fault", None)

            def broken() -> None:
                raise AssertionError

            engine._stages.denoiser._board = broken  # type: ignore[method-assign]
            assert await reported(_order()) == (503, "engine_fault", None)
            await asyncio.to_thread(engine._stages.denoiser._thread.join)
            with pytest.raises(EngineFault, match="the denoising thread has ended"):
                await replica.check_health()

    asyncio.run(main())
