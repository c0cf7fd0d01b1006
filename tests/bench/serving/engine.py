"""The engine against the bare pipeline in the same process, and what adapters cost in it.

    python tests/bench/serving/engine.py                            # the embedded base, on the CPU
    python tests/bench/serving/engine.py --shape sdxl --steps 20    # true SDXL shapes, random weights, on a GPU

Rows are measured in turn, every other pass backwards, so that a machine whose speed drifts slows all alike. `x base` is
a row's time per image against the engine's base row of the same batch. Nothing here fails on a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionXLPipeline

from sdxl_ray.config.schema import Base
from sdxl_ray.display.table import Column, Table
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.models.pipeline import generate, load_pipeline
from serve.engine.engine import ServingEngine
from serve.engine.request import AdapterUse, ImageRequest
from serve.engine.settings import EngineSettings

# What all benchmarks share; only now, since beside it lies a `serve.py` that would hide the package `serve`.
sys.path.append(str(Path(__file__).parents[1]))

from machine import machine
from randomlora import random_lora
from randomparts import random_pipeline

NAMES = ("one", "two", "three")
#: A pass of a row: milliseconds of each image.
Pass = Callable[[], Awaitable[list[float]]]


def main() -> None:
    """Measure and print one table."""
    options = _options()
    found = asyncio.run(_measure(options))
    rows = _rows(found)
    about = {**machine(), "command": shlex.join(["python", *sys.argv]), "shape": options.shape}
    print("\n".join(f"{name}: {value}" for name, value in about.items()), end="\n\n")
    print(_table(rows).text())
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", "sdxl"), default="tiny", help="whose shapes (default: tiny)")
    parser.add_argument("--images", type=int, default=8, help="images of a row in a pass (default: 8)")
    parser.add_argument("--batch", type=int, default=8, help="the larger batch (default: 8)")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps (default: 10)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters (default: 16)")
    parser.add_argument("--repeats", type=int, default=4, help="passes over all rows (default: 4)")
    parser.add_argument("--eager", action="store_true", help="compile nothing, also on a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    return parser.parse_args()


async def _measure(options: argparse.Namespace) -> dict[tuple[str, int], dict[str, Any]]:
    settings = EngineSettings(
        device=None if options.shape == "sdxl" else "cpu",
        max_batch=options.batch,
        compile=False if options.eager else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        bare = _pipeline(options.shape, settings)
        adapters = {n: random_lora(Path(folder) / n, bare, options.rank, i) for i, n in enumerate(NAMES)}
        engines = {
            "mixed": ServingEngine(
                Base(), adapters=adapters, settings=settings, pipeline=_pipeline(options.shape, settings)
            ),
            "fused": ServingEngine(
                Base(), settings=settings, pipeline=_fused(options.shape, settings, adapters["one"])
            ),
        }
        for engine in engines.values():
            await engine.start()
        passes = _passes(options, bare, engines)
        found: dict[tuple[str, int], dict[str, Any]] = {key: {"each": [], "spent": []} for key in passes}
        for number in range(-1, options.repeats):  # the first pass warms up
            for key in list(passes)[:: 1 if number % 2 else -1]:
                begun = time.perf_counter()
                each = await passes[key]()
                if number >= 0:
                    found[key]["spent"].append((time.perf_counter() - begun) / len(each))
                    found[key]["each"] += each
        for engine in engines.values():
            await engine.stop()
    return found


def _pipeline(shape: str, settings: EngineSettings) -> StableDiffusionXLPipeline:
    if shape == "sdxl":
        return random_pipeline("sdxl", settings.place, settings.width)
    return load_pipeline(Base(), None, dtype=settings.width, device=settings.place)


def _fused(shape: str, settings: EngineSettings, adapter: Artifact) -> StableDiffusionXLPipeline:
    pipe = _pipeline(shape, settings)
    pipe.load_lora_weights(adapter.folder)
    pipe.fuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    return pipe


def _passes(
    options: argparse.Namespace, bare: StableDiffusionXLPipeline, engines: dict[str, ServingEngine]
) -> dict[tuple[str, int], Pass]:
    """Rows by name and batch. The mix is a base image and one of each adapter, over and over."""
    mix = [(), *[(AdapterUse(name),) for name in NAMES]]
    uses: dict[str, tuple[str, Sequence[tuple[AdapterUse, ...]]]] = {
        "engine, base": ("mixed", [()]),
        "engine, one adapter": ("mixed", [mix[1]]),
        "engine, adapters and base mixed": ("mixed", mix),
        "engine, adapter fused": ("fused", [()]),
    }
    passes: dict[tuple[str, int], Pass] = {}
    for batch in sorted({1, options.batch}):
        passes["bare pipeline", batch] = _bare(options, bare, batch)
        for name, (engine, kinds) in uses.items():
            passes[name, batch] = _engine(options, engines[engine], kinds, batch)
    return passes


def _bare(options: argparse.Namespace, pipe: StableDiffusionXLPipeline, batch: int) -> Pass:
    async def run() -> list[float]:
        each = []
        for start in range(0, options.images, batch):
            number = min(batch, options.images - start)
            begun = time.perf_counter()
            generate(
                pipe,
                ["a photo of a dog"] * number,
                seeds=list(range(number)),
                num_inference_steps=options.steps,
                guidance_scale=7.5,
                batch_size=batch,
            )
            each += [(time.perf_counter() - begun) * 1e3] * number
        return each

    return run


def _engine(
    options: argparse.Namespace, engine: ServingEngine, kinds: Sequence[tuple[AdapterUse, ...]], batch: int
) -> Pass:
    async def run() -> list[float]:
        each = []
        for start in range(0, options.images, batch):
            numbers = range(start, min(start + batch, options.images))
            requests = [
                ImageRequest("a photo of a dog", i, num_inference_steps=options.steps, adapters=kinds[i % len(kinds)])
                for i in numbers
            ]
            drawn = await asyncio.gather(*[engine.draw(request) for request in requests])
            each += [one.times.total_ms for one in drawn]
        return each

    return run


def _rows(found: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for (name, batch), numbers in found.items():
        base = found["engine, base", batch]["spent"]
        # Passes stand next to each other in time: their ratios drift less than their times.
        ratios = [mine / theirs for mine, theirs in zip(numbers["spent"], base, strict=True)]
        rows.append(
            {
                "name": name,
                "batch": batch,
                "pictures_per_s": 1 / statistics.median(numbers["spent"]),
                "p50_ms": statistics.median(numbers["each"]),
                "ratio": statistics.median(ratios),
            }
        )
    return rows


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = [
        Column("name", "drawn by"),
        Column("batch", "batch"),
        Column("pictures_per_s", "images/s", lambda x: f"{x:.3g}"),
        Column("p50_ms", "p50 ms", lambda x: f"{x:.1f}"),
        Column("ratio", "x base", lambda x: f"{x:.3f}"),
    ]
    return Table(columns, rows)


if __name__ == "__main__":
    main()
