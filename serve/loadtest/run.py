"""A load test from settings to records: every run in its order, what is recorded is not run again.

home/
  loadtest.json       what the rows are of; another load test in the same folder is refused
  records/            the table `requests`
  loadgen/<run>/      LoadGen's own summary and detail log
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.atomic import write_text
from sdxl_ray.io.records import Recorder, read
from sdxl_ray.io.rows import OnRow, Row
from serve.loadtest.config import LoadTest
from serve.loadtest.endpoint import arms_of, deployment_of, models
from serve.loadtest.generator import Generator, require_loadgen
from serve.loadtest.plan import LoadRun, runs
from serve.loadtest.search import search

CARD = "loadtest.json"


def run_load_test(settings: LoadTest, home: Path, *, on_row: OnRow) -> list[Row]:
    """Put load on every arm, into `home/records`; every row of the folder that is of this load test.

    Raises UserError before anything is sent: LoadGen is missing, the endpoint does not answer or lacks a model, arms
    that are to be isolated share replicas, the folder holds another load test. RunError: an arm that answers nothing,
    or whose artifact changed during training.
    """
    require_loadgen()
    known = models(settings)
    settings = settings.model_copy(update={"arms": dict(arms_of(settings, known))})
    deployment = deployment_of(settings, known)
    claim(home, settings.identity)
    plan = list(runs(settings, list(settings.arms)))
    with Recorder(home / "records", rows=1 << 30, seconds=float("inf")) as recorder:
        rows = read(home / "records", "requests").to_pylist()
        test = _Test(settings, recorder, rows, on_row)
        with Generator(settings, home / "loadgen", deployment) as generator:
            for place, run in enumerate(plan):
                on_row({"kind": "phase", "name": f"load on {run.label}", "done": place, "total": len(plan)})
                test.take(generator, run)
            if settings.bound is not None:
                search(settings, lambda run: test.take(generator, run), lambda text: _note(on_row, text))
    return test.rows


def claim(home: Path, identity: str) -> None:
    """Make the folder this load test's. Raises UserError when it is another's, or cannot be made."""
    path = home / CARD
    if home.is_dir() and (before := identity_of(home)) is not None:
        if before != identity:
            raise UserError(f"{str(home)!r} holds the rows of another load test: give another folder, --out DIR")
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"identity": identity}) + "\n")
    except OSError as error:
        raise UserError(f"{str(home)!r} cannot hold a load test: {error.strerror}") from None


def identity_of(home: Path) -> str | None:
    """Whose rows a folder holds; None when no load test has claimed it. Raises UserError for a damaged card."""
    path = home / CARD
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["identity"]) if path.is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{str(path)!r} is damaged: delete it and the requests-*.parquet beside it") from None


class _Test:
    """What is recorded, and how a run becomes more of it."""

    def __init__(self, settings: LoadTest, recorder: Recorder, rows: list[Row], on_row: OnRow) -> None:
        self._settings, self._recorder, self._on_row = settings, recorder, on_row
        self.rows = rows

    def take(self, generator: Generator, run: LoadRun) -> list[Row]:
        """The rows of a run: those that are there, or else those of the load that is put on the arm now."""
        known = [row for row in self.rows if _key(row) == run.key]
        if len(known) == run.queries:
            return known
        generator.warm(run, self._settings.warmup)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        rows = [{**row, "started": started} for row in generator.run(run)]
        self._check(run, rows)
        for row in rows:
            self._recorder.write("requests", row)
        self._recorder.flush()  # a run is written whole or not at all
        self.rows += rows
        self._on_row({"kind": "note", "text": f"{run.label}: {_words(rows)}"})
        return rows

    def _check(self, run: LoadRun, rows: list[Row]) -> None:
        if not any(row["status"] == 200 for row in rows) and all(row["status"] not in (429, 503) for row in rows):
            raise RunError(f"{run.label}: no request succeeded; the first: {rows[0]['status']} {rows[0]['error']}")
        served: dict[str, str] = {}
        for row in (*self.rows, *rows):
            if row["arm"] != run.arm or row.get("artifact") is None:
                continue
            used = {row["model"]: row["artifact"]}
            used |= dict(text.split("=") for text in (row.get("adapters") or "").split())
            for model, now in used.items():
                before = served.setdefault(model, now)
                if before != now:
                    raise RunError(
                        f"arm {run.arm!r}: model {model!r} was artifact {before[:12] or 'base'} and is now "
                        f"{now[:12] or 'base'}: start again in another folder, --out DIR"
                    )


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("arm", "phase", "scenario", "rate", "round"))


def _words(rows: Iterable[Row]) -> str:
    rows = list(rows)
    good = sorted(row["latency_ms"] for row in rows if row["status"] == 200)
    middle = f", median {good[len(good) // 2]:.0f} ms" if good else ""
    return f"{len(good)} of {len(rows)} answered{middle}"


def _note(on_row: OnRow, text: str) -> None:
    on_row({"kind": "note", "text": text})
