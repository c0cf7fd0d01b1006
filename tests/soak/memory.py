"""Memory (S5 in RESULTS.md): 5,000 requests that swap adapters in and out of a replica; its memory must not grow.

python tests/soak/memory.py [REQUESTS]

Prints memory against time and the slope after warm-up, by least squares over the second half of the requests; exit code
1 above 1 MB a minute. The images are small, so that swapping is most of the work.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from serve.config import ServeConfig, parse
from serve.local import running
from tests.serve.client import Client, replicas
from tests.serve.engine.plain import make_lora

ADAPTERS = ("round", "sharp", "wordy")
MOST_MB_PER_MINUTE = 1.0
PERIOD_S = 2.0


def _endpoint(folder: Path) -> ServeConfig:
    for seed, kind in enumerate(ADAPTERS):
        make_lora(folder / kind, kind, seed)
    variants = {"base": None, **{kind: str(folder / kind) for kind in ADAPTERS}}
    return parse({"variants": variants, "port": 0, "engine": {"max_cached_adapters": 1}, "limits": {"adapters": 1}})


def _megabytes(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss) / 1e6


def main() -> None:
    """Send, watch, fit."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as folder, running(_endpoint(Path(folder))) as url:
        client = Client(url)
        watched = {"weights": replicas()[0], "ingress": replicas("ingress")[0]}
        models = itertools.cycle(("base", *ADAPTERS))
        bodies = [
            {"model": next(models), "seed": index, "num_inference_steps": 1, "size": "32x32"} for index in range(count)
        ]
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in watched}
        start = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            replies = [pool.submit(lambda body=body: client.draw(**body)) for body in bodies]
            while not all(reply.done() for reply in replies):
                for name, process in watched.items():
                    seen[name].append((time.monotonic() - start, _megabytes(process)))
                time.sleep(PERIOD_S)
        statuses = {reply.result().status for reply in replies}
    minutes = (time.monotonic() - start) / 60
    sys.stdout.write(f"{count} requests in {minutes:.1f} minutes, statuses {statuses}" + "\n")
    worst = 0.0
    for name, points in seen.items():
        later = np.array(points[len(points) // 2 :])
        slope = float(np.polyfit(later[:, 0] / 60, later[:, 1], 1)[0])
        worst = max(worst, slope)
        sys.stdout.write(
            f"{name:<8} {points[0][1]:7.1f} MB at first, {points[-1][1]:7.1f} MB at last, slope {slope:+.2f} MB/min"
            + "\n"
        )
    if statuses != {200} or worst > MOST_MB_PER_MINUTE:
        sys.exit(f"at most {MOST_MB_PER_MINUTE} MB/min and status 200 only")


if __name__ == "__main__":
    main()
