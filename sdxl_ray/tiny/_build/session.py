"""A stage of training that is bounded in time, shows progress, and goes on where it was cut."""

from __future__ import annotations

from sdxl_ray.io.atomic import whole_file

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

_SAVE_EVERY_S = 90.0
_REPORT_EVERY_S = 20.0
_EARLY = 0.25  # a state of about this share of the time is kept, for those who need a half-trained model


class Session:
    """Steps of one stage: `for step in session: ...; session.update(loss)`.

    The learning rate rises for the share `warmup` of the time and falls by a cosine to a hundredth of `lr`. The time
    is the wall time spent in the loop over all starts. State is kept in `folder/<name>.pt`, also when the process is
    asked to end (SIGTERM).
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        minutes: float,
        model: nn.Module,
        lr: float,
        *,
        average: float = 0.0,
        warmup: float = 0.01,
    ) -> None:
        self.name, self.seconds, self.model, self._lr = name, 60 * minutes, model, lr
        self._warmup = warmup
        self._file = folder / f"{name}.pt"
        self._log = folder / f"{name}.jsonl"
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.averages = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}
        self._average = average
        self.step, self._spent, self.samples = 0, 0.0, 0
        self._early = self._file.with_name(f"{name}-early.pt").is_file()
        self._shown: dict[str, float] = {}
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if self.world > 1:
            torch.distributed.init_process_group("gloo")
        if self._file.is_file():
            self._load()
        self._told_to_stop = False
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, *_: object) -> None:
        self._told_to_stop = True

    @property
    def fraction(self) -> float:
        """The share of the time that is over."""
        return min(1.0, self._spent / self.seconds)

    def __iter__(self) -> Iterator[int]:
        last = saved = shown = time.monotonic()
        while self.fraction < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr * self._shape()
            yield self.step
            now = time.monotonic()
            self._spent += now - last
            last = now
            self._agree()
            self.step += 1
            if self._told_to_stop:
                self._save()
                sys.exit(143)
            if not self._early and self.fraction > _EARLY:
                self._early = True
                self._save(self._file.with_name(f"{self.name}-early.pt"))
            if now - saved > _SAVE_EVERY_S or self.fraction >= 1:
                saved = now
                self._save()
            if now - shown > _REPORT_EVERY_S or self.fraction >= 1:
                shown = now
                self._report()

    def update(self, loss: torch.Tensor, samples: int, **shown: float) -> None:
        """Backward, clip to 1, step, average. `shown` joins the progress line."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [w for w in self.model.parameters() if w.grad is not None]
        if self.world > 1:
            self._share(trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.samples += samples * self.world
        if self._average:
            decay = min(self._average, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                names = list(self.averages)
                now = dict(self.model.named_parameters())
                torch._foreach_lerp_([self.averages[n] for n in names], [now[n] for n in names], 1 - decay)
        for key, value in {"loss": float(loss.detach()), **shown}.items():
            self._shown[key] = 0.98 * self._shown.get(key, value) + 0.02 * value

    def finish(self) -> None:
        """Put the averages in the model, where they are kept."""
        if self._average:
            with torch.no_grad():
                for name, weight in self.model.named_parameters():
                    if name in self.averages:
                        weight.copy_(self.averages[name])

    def _shape(self) -> float:
        if self.fraction < self._warmup:
            return (self.fraction + 1e-4) / self._warmup
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (self.fraction - self._warmup) / (1 - self._warmup)))

    def _share(self, trained: list[nn.Parameter]) -> None:
        grads = [weight.grad for weight in trained if weight.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        for grad, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(piece.view_as(grad))

    def _agree(self) -> None:
        """Every process goes by the first one's clock, or they would not stop at the same step."""
        if self.world > 1:
            shared = torch.tensor([self._spent, float(self._told_to_stop)], dtype=torch.float64)
            torch.distributed.broadcast(shared, 0)
            self._spent, self._told_to_stop = float(shared[0]), bool(shared[1])

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages,
            "numbers": [self.step, self._spent, self.samples],
        }

    def _save(self, file: Path | None = None) -> None:
        if self.rank == 0:
            with whole_file(file or self._file) as draft:
                torch.save(self._state(), draft)

    def _load(self) -> None:
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, weight in state["averages"].items():
            self.averages[name].copy_(weight)
        self.step, self._spent, self.samples = state["numbers"]

    def _report(self) -> None:
        if self.rank:
            return
        row = {"step": self.step, "minutes": self._spent / 60, "samples": self.samples, **self._shown}
        with self._log.open("a") as log:
            log.write(json.dumps(row) + "\n")
        values = " ".join(f"{key} {value:.4f}" for key, value in self._shown.items())
        rate = self.samples / max(self._spent, 1e-9)
        sys.stderr.write(f"{self.name} {self.fraction:4.0%} step {self.step} {rate:.0f}/s {values}\n")
