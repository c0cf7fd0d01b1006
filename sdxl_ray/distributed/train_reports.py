"""What Ray Train gets of a run's rows: metrics, and a pointer to each checkpoint."""

from __future__ import annotations

import uuid
from typing import Any

from ray import train

from sdxl_ray.distributed._ray_private import experiment_folder
from sdxl_ray.distributed.ray_checkpoint import CheckpointPointer
from sdxl_ray.io.rows import OnRow, Row
from sdxl_ray.io.storage import Storage


class TrainReports:
    """Reports a run's rows to Ray Train. Every rank calls it with the same rows, since each report is a barrier.

    Rank 0 writes the pointer to a checkpoint, and tells `on_row` when it cannot: the run then has the checkpoint, and
    Ray Train only its metrics.
    """

    def __init__(self, rank: int, storage: Storage, run: str, on_row: OnRow) -> None:
        self._rank, self._storage, self._run, self._on_row = rank, storage, run, on_row
        self._step, self._measured = -1, dict[str, Any]()

    def __call__(self, row: Row) -> None:
        """Collective for the kinds that are reported; nothing for others."""
        match row["kind"]:
            case "validation":
                self._report(row["step"], {"validation_step": row["step"], "validation_loss": row["loss"]})
            case "scores":  # under their own names, as a search asks for them
                self._report(row["step"], {"step": row["step"], **row["metrics"]})
            case "checkpoint":
                self._report_checkpoint(row)

    def _report(self, step: int, metrics: dict[str, Any]) -> None:
        if step != self._step:
            self._step, self._measured = step, {}
        self._measured |= metrics
        train.report(metrics)

    def _report_checkpoint(self, row: Row) -> None:
        """A checkpoint with what was measured at its step."""
        step = row["step"]
        metrics = {"checkpoint_step": step, **(self._measured if step == self._step else {})}
        pointer = self._pointer(step, row["sha256"]) if self._rank == 0 else None
        train.report(metrics, checkpoint=pointer, checkpoint_upload_mode=train.CheckpointUploadMode.NO_UPLOAD)

    def _pointer(self, step: int, sha256: str) -> train.Checkpoint | None:
        files, experiment = experiment_folder()
        # A run that resumes in the same experiment may write a step twice.
        folder = f"{experiment}/step-{step:07d}-{uuid.uuid4().hex[:8]}"
        try:
            CheckpointPointer.of(self._storage, self._run, step, sha256).write(files, folder)
        except OSError as error:  # an error of rank 0 alone would leave the others waiting in their report
            self._on_row({"kind": "note", "text": f"Ray Train does not see the checkpoint of step {step}: {error}"})
            return None
        return train.Checkpoint(folder, filesystem=files)
