"""Saves one checkpoint after another until somebody kills it: `python saver.py FOLDER`, told on stdout."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from sdxl_ray.io.collectives import SingleProcess
from sdxl_ray.training.checkpoint import CheckpointStore


def _write(folder: Path) -> list[Path]:
    files = [folder / "state-00000.safetensors", folder / "rest-00000.pt"]
    for file in files:
        file.write_bytes(os.urandom(2_000_000))
    return files


def main(folder: Path) -> None:
    """Continue after the newest checkpoint, for ever."""
    store = CheckpointStore(folder, SingleProcess(), keep=2, keep_best=True)
    store.clean()
    found = store.latest()
    for step in itertools.count((found.step if found else 0) + 1):
        print(f"saving {step}", flush=True)  # noqa: T201  # the parent kills us somewhere after this line
        store.save(step, {"best_step": 1}, _write)
        print(f"saved {step}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
