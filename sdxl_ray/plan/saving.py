"""What checkpoints and the artifact take: disk, CPU memory while they are written, seconds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sdxl_ray.plan.memory import checkpoint_bytes
from sdxl_ray.plan.setting import RunShape

#: Measured: SHA-256 on one core, bytes a second.
HASH_RATE = 1.14e9
#: Assumed: bytes a second that a disk takes, at worst and at best.
DISK_RATE = (0.25e9, 2e9)


@dataclass(frozen=True)
class Saving:
    """Of a whole run. checkpoint_bytes: of each; checkpoints: on disk at once, at most; written: in all.

    host_bytes: CPU memory of one worker while it writes a checkpoint, beside what training holds. seconds: of all
    checkpoints and the artifact, (low, high).
    """

    checkpoint_bytes: int
    checkpoints: int
    written: int
    artifact_bytes: int
    host_bytes: int
    seconds: tuple[float, float]

    @property
    def disk_bytes(self) -> int:
        """The most that the run's folder takes, samples and records apart."""
        return self.checkpoints * self.checkpoint_bytes + self.artifact_bytes

    @property
    def least_disk_bytes(self) -> int:
        """With one checkpoint kept while the next is written."""
        return min(2, self.checkpoints) * self.checkpoint_bytes + self.artifact_bytes

    @property
    def hash_seconds(self) -> float:
        """Of one checkpoint, on each worker at once."""
        return self.host_bytes / HASH_RATE

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "seconds": list(self.seconds), "disk_bytes": self.disk_bytes}


def saving(s: RunShape) -> Saving:
    """What a setting's checkpoints and artifact take."""
    recipe, size = s.recipe, checkpoint_bytes(s)
    steps, evaluated = recipe.optim.steps, recipe.evaluation
    scored = evaluated.scores != "never" and evaluated.every > 0
    written = math.ceil(steps / recipe.checkpoint.every) + (steps // evaluated.every if scored else 0)
    # The one that is being written is beside all that are kept.
    kept = recipe.checkpoint.keep + 1 + int(recipe.checkpoint.keep_best or scored)
    twice = recipe.tuning.kind == "lora" or recipe.artifact.single_file  # diffusers' file and kohya's, folder and file
    whole = s.artifact_bytes * (2 if twice else 1)
    share = math.ceil(size / s.workers)
    slow, quick = DISK_RATE
    low, high = (
        written * (share / HASH_RATE + size / rate) + whole * (1 / HASH_RATE + 1 / rate) for rate in (quick, slow)
    )
    return Saving(size, min(kept, written), written, whole, share, (low, high))
