"""Live progress of a run, fed plain rows: one display on a terminal, one line every few seconds in a log.

    with Progress() as progress:
        progress.row({"kind": "phase", "name": "caching images", "done": 3, "total": 40})
        progress.row({"kind": "step", "step": 7, "steps": 800, "loss": 0.12, "samples_per_s": 3.1, "peak_bytes": [9e9]})
        progress.row({"kind": "validation", "step": 100, "loss": 0.11})
        progress.row({"kind": "scores", "step": 100, "metrics": {"quality": 0.6, "dino_i": 0.7}, "seconds": 4.0})
        progress.row({"kind": "sample", "step": 100, "path": "runs/dog/samples/step-0000100.png"})
        progress.row({"kind": "checkpoint", "step": 100, "seconds": 1.4})
        progress.row({"kind": "resume", "step": 100, "workers": 2})
        progress.row({"kind": "artifact", "path": "runs/dog/artifact"})
        progress.row({"kind": "note", "text": "worker 1 was lost"})

`Progress.row` is what `train.launch(on_row=...)` wants. Only `kind` and the first two or three fields of each row
above are needed; what a row lacks is not shown. Floor 0: it knows no cluster.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sdxl_ray.display.units import bytes_text, seconds_text

#: The speed that the ETA uses forgets older steps with this factor a step.
_SMOOTHING = 0.9


@dataclass
class _State:
    """What the rows have said so far."""

    name: str = "starting"
    done: int = 0
    total: int = 0
    step: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] | None = None
    scores: Mapping[str, Any] | None = None
    seconds_per_unit: float | None = None
    changed: float | None = None

    @property
    def eta_s(self) -> float | None:
        """Seconds until the phase ends, from the smoothed speed; None before there is one."""
        if self.seconds_per_unit is None or not self.total:
            return None
        return self.seconds_per_unit * max(self.total - self.done, 0)

    def advance(self, name: str, done: int, total: int, now: float) -> None:
        units = done - self.done
        if name != self.name or units < 0:  # another phase, or a resumed run that went back
            self.seconds_per_unit, self.changed = None, now
        elif units > 0 and self.changed is not None:
            fresh = (now - self.changed) / units
            keep = _SMOOTHING**units
            self.seconds_per_unit = (
                fresh if self.seconds_per_unit is None else keep * self.seconds_per_unit + (1 - keep) * fresh
            )
            self.changed = now
        self.name, self.done, self.total = name, done, total


class Progress:
    """The display, as a context. stream: default stdout; `every_s`: seconds between plain lines.

    A terminal gets a live display of two lines; anything else gets plain lines: at once when a phase begins or ends
    and for validations, samples and notes, else every `every_s` seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)
        self._every_s, self._clock = every_s, clock
        self._begun, self._spoken = clock(), float("-inf")
        self._state = _State()
        self._live = Live(get_renderable=self._image, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()  # transient: the last frame goes, its line stays
            self._say(self._line())

    def row(self, row: Mapping[str, Any]) -> None:
        """Take one row. A kind that it does not know is printed as it is, never an error: a display stops no run."""
        match row:
            case {"kind": "phase", "name": str(name), **rest}:
                self._advance(name, int(rest.get("done") or 0), int(rest.get("total") or 0))
            case {"kind": "step", "step": int(step), "steps": int(steps)}:
                self._state.step = row
                self._advance("training", step, steps)
            case {"kind": "validation", "step": step, "loss": loss}:
                self._state.validation = row
                self._say(f"step {step}: validation loss {loss:.4f}")
            case {"kind": "scores", "step": step, "metrics": metrics, "seconds": seconds}:
                self._state.scores = row
                reported = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if name != "quality")
                quality = f"{metrics['quality']:.3f}"
                self._say(f"step {step}: quality {quality} ({reported}), scored in {seconds_text(seconds)}")
            case {"kind": "overfitting", "step": step, "text": text}:
                self._say(f"step {step}: overfitting: {text}")
            case {"kind": "sample", "step": step, "path": path}:
                self._say(f"step {step}: samples in {path}")
            case {"kind": "saving"}:
                pass  # the checkpoint is reported when it exists
            case {"kind": "checkpoint", "step": step, "seconds": seconds}:
                self._say(f"step {step}: checkpoint written in {seconds_text(seconds)}")
            case {"kind": "resume", "step": step, "workers": workers}:
                self._say(f"going on from step {step} with {workers} worker{'s' if workers != 1 else ''}")
            case {"kind": "artifact", "path": path}:
                self._state.validation = self._state.scores = None  # the next run has its own
                self._say(f"artifact in {path}")
            case {"kind": "note", "text": text}:
                self._say(str(text))
            case _:
                self._say(", ".join(f"{key} {value}" for key, value in row.items()))

    def _advance(self, name: str, done: int, total: int) -> None:
        now = self._clock()
        news = name != self._state.name or (done == total and self._state.done != total)
        self._state.advance(name, done, total, now)
        if not self._console.is_terminal and (news or now - self._spoken >= self._every_s):
            self._spoken = now
            self._say(self._line())

    def _say(self, text: str) -> None:
        # soft_wrap: a log line is one line, whatever width rich guesses for a file.
        self._console.print(text, soft_wrap=True)

    def _line(self) -> str:
        state = self._state
        where = f" {state.done}/{state.total}" if state.total else ""
        return "  ".join([f"[{seconds_text(self._clock() - self._begun)}] {state.name}{where}", *self._facts()])

    def _facts(self) -> list[str]:
        state, step = self._state, self._state.step if self._state.name == "training" else {}
        facts = []
        if step.get("loss") is not None:
            facts.append(f"loss {step['loss']:.4f}")
        if step.get("samples_per_s") is not None:
            facts.append(f"{step['samples_per_s']:.2f} samples/s")
        if state.eta_s:
            facts.append(f"ETA {seconds_text(state.eta_s)}")
        if step.get("peak_bytes"):
            facts.append(f"memory {_memory(step['peak_bytes'])}")
        if step and state.validation is not None:
            facts.append(f"validation {state.validation['loss']:.4f} at {state.validation['step']}")
        if step and state.scores is not None:
            facts.append(f"quality {state.scores['metrics']['quality']:.3f} at {state.scores['step']}")
        return facts

    def _image(self) -> RenderableType:
        state = self._state
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        count = f"{state.done}/{state.total}" if state.total else ""
        elapsed = seconds_text(self._clock() - self._begun)
        bar.add_row(
            state.name,
            ProgressBar(total=state.total or None, completed=state.done, pulse=not state.total),
            f"{count} {elapsed}".strip(),
        )
        return Group(bar, Text("  ".join(self._facts()), no_wrap=True, overflow="ellipsis"))


def _memory(peak_bytes: Any) -> str:
    """One number per worker, or one number: bytes."""
    peaks = peak_bytes if isinstance(peak_bytes, list | tuple) else [peak_bytes]
    return " / ".join(bytes_text(peak) for peak in peaks)
