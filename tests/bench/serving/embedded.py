"""The embedded base: bare pipeline, engine, Ray's plain recipe and ours, all resident in one run and measured in turn.

Every other round goes backwards, so that a machine whose speed drifts slows all alike. What goes over HTTP is sent by
the load test's own generator.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from child import answer
from servearms import ServeArm

Rows = list[dict[str, Any]]
RECIPE, OURS = ("recipe",), ("base", "lora", "fused", "mixed")


def measure(arm: ServeArm, folder: Path) -> dict[str, Any]:
    """Numbers of every system; `requests` are the rows of what went over HTTP."""
    import torch
    from inside import Inside
    from lora import random_lora

    from sdxl_ray.config.schema import Base
    from sdxl_ray.models.pipeline import load_pipeline
    from serve.engine.engine import ServingEngine
    from serve.engine.settings import EngineSettings

    pipe = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
    lora = random_lora(folder / "lora", pipe.unet, Base(), arm.rank, 0)
    engine = ServingEngine(Base(), settings=EngineSettings(max_batch=arm.batch, cached_prompts=0))
    inside = Inside(pipe, engine, arm.steps, arm.guidance, arm.batch)
    wait = asyncio.new_event_loop().run_until_complete
    wait(engine.start())
    with ExitStack() as stack:
        stack.callback(lambda: wait(engine.stop()))
        systems = stack.enter_context(_systems(arm, lora.folder))
        numbers: dict[str, list[float]] = {}

        def keep(name: str, found: list[float] | float) -> None:
            numbers.setdefault(name, []).extend(found if isinstance(found, list) else [found])

        tasks: list[tuple[str, Callable[[int], None]]] = [
            ("pipeline", lambda _: keep("pipeline_ms", inside.pipeline_ms(arm.singles))),
            ("engine", lambda _: keep("engine_ms", wait(inside.engine_ms(arm.singles)))),
            *((name, lambda r, name=name: systems.singles(name, r)) for name in (*RECIPE, *OURS[:-1])),
            ("pipeline, batches", lambda _: keep("pipeline_rate", inside.pipeline_rate(arm.images))),
            ("engine, all at once", lambda _: keep("engine_rate", wait(inside.engine_rate(arm.images)))),
            *((f"{name}, all at once", lambda r, name=name: systems.offline(name, r)) for name in (*RECIPE, *OURS)),
        ]  # fmt: skip
        for round_ in range(arm.rounds):
            for place, (name, task) in enumerate(tasks if round_ % 2 == 0 else reversed(tasks)):
                _say(f"round {round_ + 1} of {arm.rounds}, {place + 1} of {len(tasks)}: {name}")
                task(round_)
        rate = systems.mixed_load(_say)
    middle = {name: statistics.median(found) for name, found in numbers.items()}
    return {"numbers": middle, "requests": systems.rows, "mixed_rate": rate, "device": "cpu"}


class _Systems:
    """What answers over HTTP, each with a load generator of its own."""

    def __init__(self, arm: ServeArm, generators: dict[str, Any], mixed: dict[str, Any]) -> None:
        self._arm, self._generators, self._mixed = arm, generators, mixed
        self.rows: Rows = []

    def singles(self, name: str, round_: int) -> None:
        """Images one after another."""
        self._run(self._generators, name, "singlestream", 0.0, self._arm.singles, round_)

    def offline(self, name: str, round_: int) -> None:
        """Images all at once."""
        self._run(self._generators, name, "offline", 0.0, self._arm.images, round_)

    def mixed_load(self, say: Callable[[str], None]) -> float:
        """Mixed step counts: what the recipe manages at most, then both at `load` of that; the rate in images/s."""
        say("mixed step counts: the recipe's most")
        taken = self._run(self._mixed, "recipe", "offline", 0.0, 2 * self._arm.images, 0, keep=False)
        most = len(taken) / max(row["done_s"] for row in taken)
        rate = float(f"{self._arm.load * most:.3g}")
        for round_ in range(self._arm.rounds):
            for name in ("recipe", "base") if round_ % 2 == 0 else ("base", "recipe"):
                say(f"mixed step counts at {rate:g}/s, round {round_ + 1} of {self._arm.rounds}: {name}")
                self._run(self._mixed, name, "server", rate, self._arm.queries, round_)
        return rate

    def _run(
        self,
        generators: dict[str, Any],
        name: str,
        scenario: Any,
        rate: float,
        count: int,
        round_: int,
        *,
        keep: bool = True,
    ) -> Rows:
        from serve.loadtest.plan import LoadRun

        run = LoadRun(name, "run", scenario, rate, round_, count, round_)
        generator = generators["recipe" if name in RECIPE else "ours"]
        generator.warm(run, 1)
        rows: Rows = generator.run(run)
        if keep:
            self.rows += rows
        return rows


@contextmanager
def _systems(arm: ServeArm, lora: Path) -> Iterator[_Systems]:
    """Both endpoints behind one proxy: the recipe's under /recipe."""
    import ray
    from ray import serve as ray_serve
    from recipe import Recipe

    from sdxl_ray.config.load_profile import LoadProfile
    from serve.config import parse
    from serve.loadtest.config import LoadArm, LoadTest
    from serve.loadtest.generator import Generator
    from serve.local import running

    # Ray lowers the priority of its workers; what runs in this process has none lowered.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tuned = {"lora": {"artifact": str(lora)}, "fused": {"artifact": str(lora), "own_replicas": True, "fused": True}}
    config = parse(
        {
            "variants": {"base": None, **tuned},
            "port": 0,
            "engine": {"max_batch": arm.batch, "cached_prompts": 0},
            "queue": {"images": 256, "work": 20_000, "timeout_s": 600},
        }
    )
    profile = LoadProfile(
        scenario="offline",
        concurrency=2 * arm.batch,
        steps={arm.steps: 1.0},
        guidance_scale=arm.guidance,
        timeout_s=600,
    )
    arms = {name: LoadArm(model=(name,)) for name in (*RECIPE, *OURS[:-1])} | {"mixed": LoadArm(model=("base", "lora"))}
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        url = stack.enter_context(running(config))
        ray_serve.run(Recipe.bind(), name="recipe", route_prefix="/recipe")
        places = {"ours": url, "recipe": f"{url}/recipe"}
        generators, mixed = (
            {
                name: stack.enter_context(Generator(LoadTest(**profile.model_dump() | steps, url=place, arms=arms)))
                for name, place in places.items()
            }
            for steps in ({}, {"steps": arm.mix})
        )
        yield _Systems(arm, generators, mixed)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    answer(measure)
