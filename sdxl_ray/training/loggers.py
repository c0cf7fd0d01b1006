"""Scribe: keeps the rows of a run: Parquet records and TensorBoard, and whatever other sinks are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdxl_ray.io.records import Recorder
from sdxl_ray.io.rows import OnRow


class RunLogger:
    """Takes the rows that the loop reports. One per run, on rank 0."""

    def __init__(self, folder: Path, sinks: Sequence[OnRow] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._recorder = Recorder(folder / "records")
        self._board = SummaryWriter(str(folder / "tensorboard"), flush_secs=15)
        self._sinks = sinks

    def __call__(self, row: dict[str, Any]) -> None:
        """Keep one row."""
        match row["kind"]:
            case "step":
                self._step(row)
            case "validation":
                self._recorder.write("validation", {k: row[k] for k in ("step", "loss", "n")})
                self._scalars(row, "validation", ("loss",))
            case "scores":
                self._recorder.write("timings", {"step": row["step"], "name": "scores", "seconds": row["seconds"]})
                for score in row["rows"]:
                    self._recorder.write("scores", score)
                for name, value in row["metrics"].items():
                    self._board.add_scalar(f"quality/{name}", value, row["step"])
            case "overfitting":
                self._board.add_text("quality/overfitting", row["text"], row["step"])
            case "timing":
                self._recorder.write("timings", {name: row[name] for name in ("step", "name", "seconds")})
            case "saving":
                self._recorder.flush()  # a resumed run writes what comes after this checkpoint, and nothing before
                self._board.flush()
            case "checkpoint":
                self._recorder.write("timings", {"step": row["step"], "name": "checkpoint", "seconds": row["seconds"]})
            case "resume":
                self._recorder.resume(row["step"])
            case "sample":
                with Image.open(row["path"]) as image:
                    pixels_HWC = np.asarray(image.convert("RGB"))
                self._board.add_image("samples", pixels_HWC, row["step"], dataformats="HWC")
        for sink in self._sinks:
            sink(row)

    def close(self) -> None:
        """Write what waits."""
        self._recorder.close()
        self._board.close()

    def _step(self, row: dict[str, Any]) -> None:
        columns = ("step", "loss", "lr", "grad_norm", "samples_per_s", "seconds", "peak_bytes", "workers")
        self._recorder.write("steps", {**{k: row[k] for k in columns}, "samples": len(row["examples"])})
        for index, view, loss in row["examples"]:
            self._recorder.write("examples", {"step": row["step"], "index": index, "picture": view, "loss": loss})
        self._scalars(row, "train", ("loss", "lr", "grad_norm", "samples_per_s", "peak_bytes"))

    def _scalars(self, row: dict[str, Any], group: str, names: tuple[str, ...]) -> None:
        for name in (name for name in names if row[name] is not None):
            self._board.add_scalar(f"{group}/{name}", row[name], row["step"])
