"""What extraction costs at SDXL's true size: each shape of a layer measured once, times how many layers have it.

    OMP_NUM_THREADS=1 python tests/bench/extraction_sdxl.py

The weights are random; five ranks are made of each decomposition. Reading 10 GB and writing the files comes on top.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import Counter

import torch
from machine import machine

from sdxl_ray.display.units import bytes_text, seconds_text
from sdxl_ray.formats.extraction import decompose
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.plan.architecture import sdxl_configs

RANKS = (4, 8, 16, 32, 64)


def main() -> None:
    names = LayerNames.of(sdxl_configs())
    layers = [*names.shapes.values(), *names.embeddings.values()]
    shapes = Counter(shape for shape in layers if len(shape) in (2, 4))
    total = 0.0
    for shape, count in sorted(shapes.items(), key=lambda item: math.prod(item[0])):
        base = torch.randn(shape).half()
        tuned = base + (1e-2 * torch.randn(shape)).half()
        began = time.process_time()
        parts = decompose(tuned, base)
        for rank in RANKS:
            parts.residual(parts.pair(rank, torch.float16))
        seconds = time.process_time() - began
        total += seconds * count
        del parts, base, tuned
        print(f"{count:4d} x {list(shape)}: {seconds:.2f} s", file=sys.stderr, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("\n".join(f"{name}: {words}" for name, words in machine().items()))
    numbers = sum(math.prod(shape) * count for shape, count in shapes.items())
    print(f"{sum(shapes.values())} layers of {len(shapes)} shapes, {numbers / 1e9:.2f} billion weights, ranks {RANKS}")
    print(f"CPU time {seconds_text(total)}, peak memory of the process {bytes_text(peak)}")


if __name__ == "__main__":
    main()
