"""Records: what a run did, as rows of Parquet tables in `<run>/records/`.

Tables, plots and reports are pure functions of these rows. A table is a set of part files `<table>-<first>.parquet`,
where `<first>` counts the rows before it. A part is complete before it gets that name, so a process killed at any
moment loses at most its unwritten rows and never leaves a file that cannot be read. Floats are float64: a Python
float comes back bit for bit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sdxl_ray.errors import RunError, UserError, nearest

#: Written into every part; raised when a column changes its meaning.
FORMAT_VERSION = 1


def _schema(**columns: pa.DataType) -> pa.Schema:
    """Columns whose names end in `_` (removed) are required; the others may be null."""
    fields = [pa.field(name.rstrip("_"), kind, nullable=not name.endswith("_")) for name, kind in columns.items()]
    return pa.schema(fields, metadata={"sdxl_ray.io.records": str(FORMAT_VERSION)})


#: The subject of a score that is joined over all of them.
ALL_SUBJECTS = "all subjects"

_WHOLE, _REAL, _TEXT = pa.int64(), pa.float64(), pa.string()

#: Columns of every table. `step` counts optimizer steps from 1; step 0 is what was measured before the first one.
TABLES: dict[str, pa.Schema] = {
    # One row an optimizer step. loss: weighted mean over the global batch; grad_norm: null where it was not read;
    # peak_bytes: of the fullest worker.
    "steps": _schema(
        step_=_WHOLE, loss_=_REAL, lr=_REAL, grad_norm=_REAL, samples=_WHOLE, samples_per_s=_REAL,
        seconds=_REAL, peak_bytes=_WHOLE, workers=_WHOLE,
    ),
    # One row an example of a step; index: its place in the global batch; image: SHA-256 of the file's bytes.
    "examples": _schema(
        step_=_WHOLE, index_=_WHOLE, picture_=_TEXT, loss_=_REAL,
    ),
    # One row a look at the held-out images; n: (image, noise, timestep) triples behind the mean.
    "validation": _schema(step_=_WHOLE, loss_=_REAL, n_=_WHOLE),
    # One row a named stretch of time (prepare, cache, train, checkpoint, export).
    "timings": _schema(step_=_WHOLE, name_=_TEXT, seconds_=_REAL),
    # One row a model, subject and metric; a score that could not be computed has no row. model: "base", an artifact's
    # name, "real" (photos against each other) or "other" (another subject of the class). low, high: 95 % interval, null
    # where there is nothing to draw again. n: images behind the score. step: of the model. artifact: its hash, empty
    # for the base. seconds: drawing and scoring all of the model's images. split: "validation", "tune" or "final".
    # metric "dino_i_gain": the model minus the base in `dino_i`, paired by prompt, seed and photo. split "final@8": the
    # same prompts drawn with 8 denoising steps. subject ALL_SUBJECTS: over every subject of the comparison.
    "scores": _schema(
        step_=_WHOLE, model_=_TEXT, subject_=_TEXT, metric_=_TEXT, value_=_REAL, low=_REAL, high=_REAL, n_=_WHOLE,
        encoder=_TEXT, preprocessing=_TEXT, split_=_TEXT, artifact=_TEXT, seconds=_REAL,
    ),
    # One row a metric and two models: `model` minus `against`, under the same prompts, seeds and photos.
    "differences": _schema(
        step_=_WHOLE, model_=_TEXT, against_=_TEXT, subject_=_TEXT, metric_=_TEXT, value_=_REAL, low=_REAL, high=_REAL,
        n_=_WHOLE, split_=_TEXT,
    ),
    # One row an image. prompt: about the plain class, so that models can be laid side by side; purpose: "subject",
    # "class" or "real" (a held-out photo, seed counts them); path: relative to the folder that holds `records`.
    # seconds: of drawing it, its share of its batch; null where it is not known.
    "pictures": _schema(
        step_=_WHOLE, model_=_TEXT, subject_=_TEXT, prompt_=_TEXT, seed_=_WHOLE, path_=_TEXT, purpose_=_TEXT,
        split_=_TEXT, seconds=_REAL,
    ),
    # One row a request of a load test. phase: "run", or "search" for the highest rate under a bound. rate: queries/s, 0
    # where the scenario has none. index: order of arrival in its run. sample: of the library of (prompt, seed, steps).
    # *_s: seconds since the run's first arrival; intended: by LoadGen's schedule. latency_ms: LoadGen's own, from the
    # intended time to the last byte. queue to server_ms, batch: as the server reports. artifact: its hash, empty for
    # the base, null when the server did not say. status: of HTTP, 0 without an answer. generator_cpu: share of one
    # core. adapters: `name=hash` of those asked for beside the model. deployment: whether arms had replicas of their
    # own. refused: how often a full server was asked again (offline). bound_ms: of p99, in a search.
    "requests": _schema(
        arm_=_TEXT, phase_=_TEXT, scenario_=_TEXT, rate_=_REAL, round_=_WHOLE, index_=_WHOLE, sample_=_WHOLE,
        model_=_TEXT, artifact=_TEXT, adapters=_TEXT, prompt_=_TEXT, seed_=_WHOLE, steps_=_WHOLE, intended_s_=_REAL,
        sent_s_=_REAL, done_s_=_REAL, latency_ms_=_REAL, queue_ms=_REAL, text_ms=_REAL, denoise_ms=_REAL,
        decode_ms=_REAL, server_ms=_REAL, batch=_REAL, status_=_WHOLE, refused=_WHOLE, bytes_=_WHOLE, error=_TEXT,
        deployment_=_TEXT, generator_cpu_=_REAL, started=_TEXT, bound_ms=_REAL,
    ),
    # One row a trial of a search, written again when something is new. parameters: path -> value, as JSON; state:
    # "running", "finished", "stopped" (by the scheduler), "cut" (the budget ended) or "failed" (error says why).
    # step: of its last evaluation; kept: of its artifact. seconds: it ran; ended_s: of the search's clock, which stands
    # still between sessions.
    "trials": _schema(
        trial_=_WHOLE, parameters_=_TEXT, state_=_TEXT, step_=_WHOLE, steps_=_WHOLE, seconds_=_REAL, ended_s_=_REAL,
        error=_TEXT, run_=_TEXT, kept=_WHOLE,
    ),
    # One row a metric of a trial's evaluation. at_s: of the search's clock.
    "trial_scores": _schema(trial_=_WHOLE, step_=_WHOLE, metric_=_TEXT, value_=_REAL, at_s_=_REAL),
    # One row an extracted LoRA and part ("unet", "text_encoder", "text_encoder_2", or "all"). rank: of all layers, null
    # where each has its own; energy: share of the squared singular values that each layer keeps. squared: ||D||^2 of
    # the layers' differences D; residual: ||D - up down|| / ||D|| of the factors as stored, predicted: the same by the
    # singular values. bytes: of the file in diffusers' names, of kohya's; only of "all", null without such a file.
    "extractions": _schema(
        name_=_TEXT, part_=_TEXT, rank=_WHOLE, energy=_REAL, lowest_rank_=_WHOLE, highest_rank_=_WHOLE, layers_=_WHOLE,
        parameters_=_WHOLE, squared_=_REAL, predicted_=_REAL, residual_=_REAL, diffusers_bytes=_WHOLE,
        kohya_bytes=_WHOLE, dtype_=_TEXT, artifact=_TEXT,
    ),
    # One row a layer whose weights differ between a full model and its base. singular: values of the difference as a
    # matrix [rows, columns], descending.
    "extracted_layers": _schema(
        part_=_TEXT, module_=_TEXT, rows_=_WHOLE, columns_=_WHOLE, squared_=_REAL, singular_=pa.list_(_REAL),
    ),
    # One row a kind of tensors that an extracted LoRA has not: "biases", "norms" and "others", which the format cannot
    # hold, "unchanged", "rounded" (the base's, rounded to the model's dtype), and "embeddings", which the file in
    # kohya's names has not. share: of the squared difference of all tensors.
    "not_extracted": _schema(kind_=_TEXT, tensors_=_WHOLE, squared_=_REAL, share_=_REAL),
}  # fmt: skip

#: What makes a row one of a kind, and the order of `read`. Of rows with equal keys the one written last counts.
KEYS: dict[str, tuple[str, ...]] = {
    "steps": ("step",),
    "examples": ("step", "index"),
    "validation": ("step",),
    "timings": ("step", "name"),
    "scores": ("step", "model", "subject", "metric", "split"),
    "differences": ("model", "against", "subject", "metric", "split"),
    "pictures": ("step", "model", "subject", "prompt", "seed", "purpose", "split"),
    "requests": ("arm", "phase", "scenario", "rate", "round", "index"),
    "trials": ("trial",),
    "trial_scores": ("trial", "step", "metric"),
    "extractions": ("name", "part"),
    "extracted_layers": ("part", "module"),
    "not_extracted": ("kind",),
}


class Recorder:
    """Appends rows to the tables of one folder. One writer per folder.

    Rows wait in memory until there are `rows` of a table or the oldest has waited `seconds`; call `flush` before a
    checkpoint is reported, because a resumed run writes only what comes after the checkpoint.

    folder: a local path or a URI that pyarrow.fs knows (`s3://bucket/runs/dog/records`). Created when missing.
    Raises UserError for a folder that cannot be made, RunError when a part cannot be written (a full disk, for
    example; the parts written before stay intact).
    """

    def __init__(self, folder: str | Path, *, rows: int = 512, seconds: float = 15.0) -> None:
        self._rows, self._seconds = rows, seconds
        self._waiting: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self._since: dict[str, float] = {}
        self._files, self._folder = _open(folder)
        try:
            self._files.create_dir(self._folder, recursive=True)
        except OSError as error:
            raise UserError(f"records folder {str(folder)!r} cannot be made: {error}") from None
        self._next = {name: self._end(name) for name in TABLES}

    def write(self, table: str, row: Mapping[str, Any]) -> None:
        """Add one row. Raises ValueError for an unknown table or column, or a required column that is missing."""
        schema = _table(table)
        for column in row:
            if column not in schema.names:
                raise ValueError(f"table {table!r} has no column {column!r}: {nearest(column, schema.names)}")
        for field in schema:
            if not field.nullable and row.get(field.name) is None:
                raise ValueError(f"a row of table {table!r} needs {field.name!r}")
        self._waiting[table].append(dict(row))
        now = time.monotonic()
        if len(self._waiting[table]) >= self._rows or now - self._since.setdefault(table, now) >= self._seconds:
            self._write_out(table)

    def flush(self) -> None:
        """Write every waiting row."""
        for table in TABLES:
            self._write_out(table)

    def resume(self, step: int) -> None:
        """Forget every row after `step`, waiting or written: the run resumes from the checkpoint of that step."""
        for table in (name for name, schema in TABLES.items() if "step" in schema.names):
            self._waiting[table] = [row for row in self._waiting[table] if row["step"] <= step]
            for _, path in _parts(self._files, self._folder, table):
                part = _load(self._files, path)
                kept = part.filter(pc.less_equal(part["step"], step))
                if kept.num_rows == 0:
                    self._files.delete_file(path)
                elif kept.num_rows < part.num_rows:
                    self._put(path, kept)
            self._next[table] = self._end(table)

    def forget(self, table: str) -> None:
        """Drop every row of a table, waiting and written."""
        self._waiting[table] = []
        self._since.pop(table, None)
        for _, path in _parts(self._files, self._folder, table):
            self._files.delete_file(path)
        self._next[table] = 0

    def close(self) -> None:
        """Write every waiting row; the recorder can be used on."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def _end(self, table: str) -> int:
        parts = _parts(self._files, self._folder, table)
        if not parts:
            return 0
        first, path = parts[-1]
        rows: int = _load(self._files, path).num_rows
        return first + rows

    def _write_out(self, table: str) -> None:
        waiting = self._waiting[table]
        if not waiting:
            return
        part = pa.Table.from_pylist(waiting, schema=TABLES[table])
        self._put(f"{self._folder}/{table}-{self._next[table]:09d}.parquet", part)
        self._next[table] += len(waiting)
        self._waiting[table] = []
        self._since.pop(table, None)

    def _put(self, path: str, part: pa.Table) -> None:
        buffer = pa.BufferOutputStream()
        pq.write_table(part, buffer, compression="zstd")
        folder, _, name = path.rpartition("/")
        hidden = f"{folder}/.writing-{name}"  # no reader matches this name; the next write of the part replaces it
        try:
            with self._files.open_output_stream(hidden) as stream:
                stream.write(buffer.getvalue())
            self._files.move(hidden, path)
        except OSError as error:
            raise RunError(f"records {path!r} cannot be written: {error}") from error


def read(folder: str | Path, table: str) -> pa.Table:
    """Every row of a table, sorted by its key (`KEYS`), without duplicates; no rows when nothing was recorded.

    Raises UserError for a missing folder and for a part that is damaged or of a newer format.
    """
    schema = _table(table)
    files, path = _open(folder)
    if files.get_file_info(path).type != pafs.FileType.Directory:
        raise UserError(f"no records folder at {str(folder)!r}: give <run>/records")
    parts = [_load(files, part) for _, part in _parts(files, path, table)]
    if not parts:
        return schema.empty_table()
    rows = pa.concat_tables([_fitted(part, schema) for part in parts])
    keys = list(KEYS[table])
    order = rows.select(keys).append_column("row", pa.array(range(rows.num_rows), pa.int64()))
    last = order.group_by(keys).aggregate([("row", "max")])["row_max"]
    return rows.take(last).sort_by([(key, "ascending") for key in keys]).replace_schema_metadata(schema.metadata)


def _fitted(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """A part with the columns of today: one that was written before a column was added has nulls there."""
    for field in schema:
        if field.nullable and field.name not in part.column_names:
            part = part.append_column(field, pa.nulls(part.num_rows, field.type))
    return part.select(schema.names).cast(schema)


def _table(name: str) -> pa.Schema:
    if name not in TABLES:
        raise ValueError(f"no table {name!r}: {nearest(name, TABLES)}")
    return TABLES[name]


def _open(folder: str | Path) -> tuple[pafs.FileSystem, str]:
    text = str(folder)
    if len(urlsplit(text).scheme) < 2:  # one letter is a Windows drive
        return pafs.LocalFileSystem(), str(Path(text).absolute())
    try:
        files, path = pafs.FileSystem.from_uri(text)
    except (OSError, ValueError) as error:
        raise UserError(f"records folder {text!r} cannot be opened: {error}") from None
    return files, path.rstrip("/")


def _parts(files: pafs.FileSystem, folder: str, table: str) -> list[tuple[int, str]]:
    """(rows before it, path) of each part of a table, in the order they were written."""
    pattern = re.compile(rf"{table}-(\d+)\.parquet")
    found = files.get_file_info(pafs.FileSelector(folder))
    named = ((pattern.fullmatch(info.base_name), info.path) for info in found)
    return sorted((int(match[1]), path) for match, path in named if match)


def _load(files: pafs.FileSystem, path: str) -> pa.Table:
    try:
        with files.open_input_file(path) as source:
            part = pq.ParquetFile(source).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"records {path!r} cannot be read: {error}") from None
    version = int((part.schema.metadata or {}).get(b"sdxl_ray.io.records", b"0"))
    if version != FORMAT_VERSION:
        raise UserError(f"records {path!r} have format {version}, this version reads {FORMAT_VERSION}")
    return part
