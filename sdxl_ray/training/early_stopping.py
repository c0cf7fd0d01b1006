"""What a run knows of how good it is: the best step so far, whether to go on, and whether it overfits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sdxl_ray.metrics.overfitting import Overfitting, overfitting
from sdxl_ray.metrics.quality import Measured

_QUALITY = "quality"
#: A smaller rise of quality is none: it is far below the noise of so few images, and would go on for ever.
_RISE = 1e-3


@dataclass
class Best:
    """The validation losses and scores so far. Plain numbers, so that a resumed run decides as the first one would.

    last: the last validation loss; loss: the lowest of a step that has a checkpoint; step: the best step, by quality
    where there are scores, else by that loss. stale: evaluations since the best one. evaluations: (step, metric ->
    measured).
    """

    last: float | None = None
    loss: float = math.inf
    step: int | None = None
    quality: float | None = None
    stale: int = 0
    stopped: bool = False
    evaluations: list[tuple[int, dict[str, Measured]]] = field(default_factory=list)
    overfitting: Overfitting | None = None

    def validated(self, loss: float, candidate: int | None) -> None:
        """Take a validation loss; `candidate`: the step that may be gone back to, or None."""
        self.last = loss
        if candidate is not None and loss < self.loss:
            self.loss, self.step = loss, candidate

    def scored(self, step: int, measured: dict[str, Measured], patience: int) -> bool:
        """Take the scores of a step that has trained; whether it is the best so far.

        Until an evaluation is above the base (quality 0) the newest one counts and none is stale: a slow start is no
        end.
        """
        quality = measured[_QUALITY][0]
        better = self.quality is None or self.quality <= 0 or quality > self.quality + _RISE
        if better:
            self.quality, self.step, self.stale = quality, step, 0
        else:
            self.stale += 1
        self.stopped = bool(patience) and self.stale >= patience
        self.evaluations.append((step, measured))
        if self.overfitting is None:
            self.overfitting = overfitting(self.evaluations)
        return better

    def meta(self) -> dict[str, Any]:
        """As plain JSON for a checkpoint."""
        found = self.overfitting
        return {
            "last": self.last,
            "best_loss": None if math.isinf(self.loss) else self.loss,
            "best_step": self.step,
            "quality": self.quality,
            "stale": self.stale,
            "stopped": self.stopped,
            "looks": [
                [step, {name: list(score) for name, score in measured.items()}] for step, measured in self.evaluations
            ],
            "overfitting": None if found is None else [found.step, found.text],
        }

    @classmethod
    def of(cls, meta: dict[str, Any]) -> Best:
        """The inverse of `meta`."""
        loss, found = meta["best_loss"], meta["overfitting"]
        evaluations: list[tuple[int, dict[str, Measured]]] = [
            (step, {name: (value, low, high) for name, (value, low, high) in measured.items()})
            for step, measured in meta["looks"]
        ]
        return cls(
            last=meta["last"],
            loss=math.inf if loss is None else loss,
            step=meta["best_step"],
            quality=meta["quality"],
            stale=meta["stale"],
            stopped=meta["stopped"],
            evaluations=evaluations,
            overfitting=None if found is None else Overfitting(*found),
        )
