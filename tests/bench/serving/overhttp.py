"""The same random weights through Ray Serve: everything at once, then Poisson arrivals at a share of that rate.

MLPerf divides the rate of its Server scenario, at which p99 keeps a bound, by that of Offline. Here the share is given,
and p99 is what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from servearms import ServeArm

#: Server throughput over offline throughput that is aimed at.
SHARE = 0.96


def over_http(arm: ServeArm, base: Path, guidance: float, say: Callable[[str], None]) -> dict[str, float]:
    """offline: images/s. p99_s, answered (share of those sent) and n of Poisson arrivals at `SHARE` of that.

    base: a folder as diffusers saves it.
    """
    from sdxl_ray.metrics.latency import summaries
    from serve.config import parse
    from serve.loadtest.config import LoadArm, LoadTest
    from serve.loadtest.generator import Generator
    from serve.loadtest.plan import LoadRun
    from serve.local import running

    config = parse(
        {
            "base": str(base),
            "port": 0,
            "engine": {"max_batch": arm.batch, "cached_prompts": 0},
            "queue": {"images": 4096, "work": 1_000_000, "timeout_s": 600},
        }
    )
    settings: dict[str, object] = {
        "scenario": "offline",
        "concurrency": 2 * arm.batch,
        "steps": {arm.steps: 1.0},
        "guidance_scale": guidance,
        "timeout_s": 600,
        "arms": {"base": LoadArm(model=("base",))},
    }
    say("Ray Serve starts")
    with running(config) as url, Generator(LoadTest(**settings, url=url)) as generator:
        most = LoadRun("base", "run", "offline", 0.0, 0, arm.images, 0)
        generator.warm(most, 2)
        say("through Ray Serve: many at once")
        (offline,) = summaries(generator.run(most))
        rate = float(f"{SHARE * offline.throughput:.3g}")
        say(f"through Ray Serve: Poisson arrivals at {rate:g}/s")
        (server,) = summaries(generator.run(LoadRun("base", "run", "server", rate, 0, arm.queries, 0)))
    return {
        "offline": offline.throughput,
        "p99_s": server.percentiles[99].value / 1000,
        "answered": server.answered / server.sent,
        "n": server.sent,
    }
