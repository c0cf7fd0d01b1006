"""Serving speed: a bare pipeline, Ray's plain `@serve.batch` recipe, and ours; tuned against base.

    python tests/bench/serve.py                        # the embedded base, on this machine
    python tests/bench/serve.py --queries 60 --rounds 2
    python tests/bench/serve.py --shape sdxl           # true SDXL shapes, random weights, on a GPU
    python tests/bench/serve.py --shape tiny --gpu-like      # the same code in the embedded base's shapes

On the embedded base everything is resident in one run and measured in turn, every other round backwards; requests over
HTTP are sent by the load test's generator. Nothing here fails on a time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import children
from machine import machine
from servearms import MIX, ServeArm
from servetables import embedded_rows, embedded_text, shapes_text

from sdxl_ray.metrics.latency import ENOUGH_FOR_P99


def main() -> None:
    """Measure what the command line asks for and print it."""
    options = _options()
    arm = _arm(options)
    found = children.run(arm, timeout_s=options.timeout, script=arm.script, heard=True)
    about = {**machine(), "command": shlex.join(["python", *sys.argv]), "device": found.get("device", "unknown")}
    print("\n".join(f"{name}: {value}" for name, value in about.items()), end="\n\n")
    if found["status"] != "ok":
        print(found["status"])
    else:
        print(embedded_text(found) if arm.name == "embedded" else shapes_text(found["rows"]), end="\n\n")
    print(*_notes(arm), sep="\n")
    if options.json:
        systems = {"rows": found["rows"]} if "rows" in found else _plain(found)
        options.json.write_text(json.dumps({**about, "status": found["status"], **systems}, indent=1))
    sys.exit(0 if found["status"] == "ok" else 1)


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    if found["status"] != "ok":
        return {"rows": []}
    rows, mixed = embedded_rows(found)
    return {"rows": rows, "mixed": mixed, "mixed_rate": found["mixed_rate"]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arm = ServeArm("embedded")
    parser.add_argument("--shape", choices=("tiny", "sdxl"), default="tiny", help="whose shapes (default: tiny)")
    parser.add_argument("--gpu-like", action="store_true", help="engine against eager diffusers, random weights")
    parser.add_argument("--steps", type=_count, default=arm.steps, help=f"denoising steps (default: {arm.steps})")
    parser.add_argument("--rounds", type=_count, default=arm.rounds, help=f"of everything (default: {arm.rounds})")
    parser.add_argument(
        "--singles", type=_count, default=arm.singles, help=f"images one by one, a round (default: {arm.singles})"
    )
    parser.add_argument(
        "--images", type=_count, default=arm.images, help=f"images at once, a round (default: {arm.images})"
    )
    parser.add_argument(
        "--queries", type=_count, default=arm.queries, help=f"Poisson arrivals, a round (default: {arm.queries})"
    )
    parser.add_argument("--batch", type=_count, default=arm.batch, help=f"largest batch (default: {arm.batch})")
    parser.add_argument("--rank", type=_count, default=arm.rank, help=f"of the LoRA (default: {arm.rank})")
    parser.add_argument("--timeout", type=float, default=3600, metavar="S", help="seconds it may take (default: 3600)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    return parser.parse_args()


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _arm(options: argparse.Namespace) -> ServeArm:
    alone = options.gpu_like or options.shape == "sdxl"
    return ServeArm(
        "shapes" if alone else "embedded",
        shape=options.shape,
        steps=options.steps,
        rounds=options.rounds,
        singles=options.singles,
        images=options.images,
        queries=options.queries,
        batch=options.batch,
        rank=options.rank,
    )


def _notes(arm: ServeArm) -> list[str]:
    if arm.name == "shapes":
        return [
            f"Random weights in {arm.shape} shapes, batch {arm.batch}, LoRA rank {arm.rank}: for speed alone.",
            "Eager diffusers: same weights, dtype and device, uncompiled. Medians; with guidance, but for LCM.",
            "Every image's prompt is encoded anew, by all alike (cached_prompts=0).",
            "A fused LoRA is the base's computation with other numbers: it has no row of its own.",
        ]
    mix = ", ".join(f"{steps} (weight {weight:g})" for steps, weight in MIX.items())
    return [
        f"{arm.steps} steps with guidance {arm.guidance:g}, fp32, one thread a process, batches of up to {arm.batch}, "
        f"LoRA rank {arm.rank}; {arm.rounds} rounds of {arm.singles} images one by one and {arm.images} at once "
        f"({2 * arm.batch} in flight over HTTP).",
        f"Mixed step counts: {mix}; {arm.load:g} of the most the recipe managed on them.",
        "Every image's prompt is encoded anew, by all alike (cached_prompts=0).",
        f"In brackets: 95 % intervals. * fewer than {ENOUGH_FOR_P99} answered requests, too few for a p99.",
    ]


if __name__ == "__main__":
    main()
