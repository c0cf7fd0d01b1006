"""Training speed and peak memory, LoRA and full: a plain diffusers loop, this process alone, and Ray Train + ZeRO.

    python tests/bench/train.py                        # the embedded base, on this machine
    python tests/bench/train.py --rows 'lora/*' --steps 60 --repeats 4
    python tests/bench/train.py --shape sdxl --peak-tflops 790      # true SDXL shapes, random weights, on a GPU
    python tests/bench/train.py --rows gpu-like        # the same code in the embedded base's shapes

Arms run one after the other, each in a process of its own; every other pass goes backwards, so that a machine whose
speed drifts slows all arms alike. Nothing here fails on a time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import children
from arms import GRID, Arm, chosen, embedded, grid, recipe
from machine import machine
from tables import device_named, merged, rows, table

from sdxl_ray.display.units import bytes_text
from sdxl_ray.plan import Device, Plan, device, memory_bytes


def main() -> None:
    """Measure what the command line asks for and print one table."""
    options = _options()
    arms = _arms(options)
    if options.list:
        print(*(arm.name for arm in arms), sep="\n")
        return
    found = _measure(arms, options)
    on = _device(found, options)
    made = rows(arms, found, on)
    about = {**machine(), "command": shlex.join(["python", *sys.argv]), "device": on.name}
    print("\n".join(f"{name}: {value}" for name, value in about.items()), end="\n\n")
    for on_grid in (False, True):
        part = [row for row in made if row["name"].startswith(f"{GRID}/") == on_grid]
        if part:
            print(table(part).text(), end="\n\n")
    print(*_notes(arms, on, options), sep="\n")
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": made}, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", "sdxl"), default="tiny", help="whose shapes (default: tiny)")
    parser.add_argument(
        "--rows", nargs="+", metavar="PATTERN", help="rows by name, as 'lora/*' or gpu-like; see --list"
    )
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    parser.add_argument("--steps", type=_count, default=30, help="timed steps (default: 30)")
    parser.add_argument("--warmup", type=int, help="steps before them (default: 5; 10 with --shape sdxl)")
    parser.add_argument(
        "--batch", type=_count, default=4, help="of the embedded rows; gpu-like has 1 and 8 (default: 4)"
    )
    parser.add_argument("--rank", type=_count, default=16, help="of LoRA (default: 16)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: fp32; bf16 with --shape sdxl")
    parser.add_argument("--repeats", type=_count, help="passes over all rows (default: 2; 1 for gpu-like)")
    parser.add_argument("--images", default="subject:robot", metavar="DIR", help="images to train on")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds a row may take (default: 600)")
    parser.add_argument("--pin", action="store_true", help="one core for each process that trains (Linux)")
    parser.add_argument("--memory-limit", type=memory_bytes, metavar="SIZE", help="as if there were no more: 24GiB")
    parser.add_argument("--device", metavar="NAME", help="plan for this device (default: the one measured on)")
    parser.add_argument(
        "--peak-tflops", type=float, metavar="X", help="its 16-bit rate, where measured: 790 for an H200"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    return parser.parse_args()


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _arms(options: argparse.Namespace) -> list[Arm]:
    large = options.shape == "sdxl"
    every = list(grid(options.shape, options.rank, options.precision or ("bf16" if large else "fp32")))
    if not large:
        every = [*embedded(options.batch, options.rank, options.precision or "fp32"), *every]
    patterns: Sequence[str] = options.rows or ([GRID] if large else ["lora", "full"])
    arms = chosen(every, patterns)
    if not arms:
        sys.exit(f"no row is named {' or '.join(patterns)}: see --list")
    # On a GPU losses are looked at every ten steps, so the first ten come as one number.
    warmup = options.warmup if options.warmup is not None else 10 if large else 5
    return [replace(arm, steps=options.steps, warmup=warmup, images=options.images) for arm in arms]


def _measure(arms: list[Arm], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    repeats = options.repeats or (1 if all(arm.name.startswith(GRID) for arm in arms) else 2)
    passes: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    done, total = 0, repeats * len(arms)
    for turn in range(repeats):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            done += 1
            result = children.run(arm, timeout_s=options.timeout, memory_limit=options.memory_limit, pin=options.pin)
            passes[arm.name].append(result)
            said = result["status"]
            if said == "ok":
                said = f"{result['samples_per_s']:.3g} samples/s, {bytes_text(result['peak_bytes'])}"
            print(f"[{done}/{total}] {arm.name}: {said}", file=sys.stderr, flush=True)
    return {name: merged(results) for name, results in passes.items()}


def _device(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> Device:
    reported = next((result["device"] for result in found.values() if "device" in result), "cpu")
    on = device(options.device) if options.device else device_named(reported)
    return replace(on, teraflops=options.peak_tflops) if options.peak_tflops else on


def _notes(arms: list[Arm], on: Device, options: argparse.Namespace) -> list[str]:
    timed = f"medians of {options.steps} steps after {arms[0].warmup}, {arms[0].precision}, LoRA rank {options.rank}"
    notes = [f"{timed}, one thread a process{', pinned to one core each' if options.pin else ''}."]
    if any(arm.how == "run" for arm in arms):
        notes.append(f"Batch {options.batch} in all. 'x plain': against the plain loop without caches, same run.")
        notes.append("Start-up: all that is not a step (imports, Ray, loading, caches, samples, the artifact).")
        notes.append("Peak memory: resident, of the fullest process that trains, up to the last step.")
    if any(arm.name.startswith(GRID) for arm in arms):
        profile = Plan.of(recipe(arms[0]), on).setting
        forward = profile.profile.flop["unet"].at(profile.latent_pixels) / 1e12
        notes.append(
            f"The floor: forward and backward without recomputation ({forward:.4g} TFLOP a UNet forward) at "
            f"{on.teraflops:g} TFLOP/s, and the optimizer's memory traffic at {on.bandwidth:g} GB/s."
        )
    return notes


if __name__ == "__main__":
    main()
