"""What several tests of runs use: images, what a run left behind, and ranks that are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sdxl_ray.models.base_model import Components
from sdxl_ray.training.engine import LocalEngine


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package catches it."""


def draw_images(folder: Path, sizes: list[tuple[int, int]], seed: int) -> Path:
    """Smooth coloured images, so that crops and sizes matter and nothing is mere noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number, size in enumerate(sizes):
        blocks = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        blocks.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@dataclass
class Outcome:
    """What a run left behind: its rows, its summary, its folder, and the engine with the trained model."""

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    engine: LocalEngine | None = None
    components: Components | None = None

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Rows of a kind."""
        return [row for row in self.rows if row["kind"] == kind]

    @property
    def losses(self) -> dict[int, float]:
        """Loss by step."""
        return {row["step"]: row["loss"] for row in self.of("step")}

    @property
    def weights(self) -> dict[str, Tensor]:
        """What was trained, by name."""
        assert self.engine is not None
        return {name: p.detach().clone() for name, p in self.engine.trainable.named}


Train = Callable[..., Outcome]


class Threads:
    """One rank of a group of threads: real collectives, so that what several workers do can be tested in a process."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, table: dict[int, Any]) -> None:
        self.rank, self.world, self._barrier, self._table = rank, world, barrier, table

    def barrier(self) -> None:
        self._barrier.wait(60)

    def gather(self, value: Any) -> list[Any]:
        self._table[self.rank] = value
        self.barrier()
        values = [self._table[rank] for rank in range(self.world)]
        self.barrier()
        return values


def on_ranks(world: int, work: Callable[[Threads], Any]) -> list[Any]:
    """`work(group)` on every rank at once; what each returned or raised."""
    barrier, table = threading.Barrier(world), dict[int, Any]()

    def one(rank: int) -> Any:
        try:
            return work(Threads(rank, world, barrier, table))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))
