"""The parent's end of the load generator: starts the process, hands it runs, ends it whatever happens."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sdxl_ray.errors import RunError, UserError
from serve.loadtest.config import LoadTest
from serve.loadtest.endpoint import api_key
from serve.loadtest.library import library, payloads
from serve.loadtest.plan import LoadRun


def require_loadgen() -> None:
    """Raise UserError when MLPerf LoadGen is not installed."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise UserError("load tests need MLPerf LoadGen: pip install 'sdxl-ray[loadtest]'")


class Generator:
    """A process that sends; a context.

    logs: a folder for LoadGen's own summaries, one folder a run. deployment: what rows say of the arms' replicas;
    default: what the settings want.
    """

    def __init__(self, settings: LoadTest, logs: Path | None = None, deployment: str | None = None) -> None:
        self._settings, self._logs = settings, logs
        self._deployment = deployment or settings.deployment
        self._samples = library(settings)
        self._said = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  # __exit__ closes it
        key = api_key(settings)
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "serve.loadtest.child", settings.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**_environment(), **({"SDXL_RAY_LOAD_KEY": key} if key else {})},
            start_new_session=True,  # Ctrl-C is for the parent, which then ends it: LoadGen would not listen
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._said):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def run(self, run: LoadRun) -> list[dict[str, Any]]:
        """The rows of a run, for the table `requests`, in the order of arrival. Raises RunError when it cannot go on.

        Blocks until every request is answered or has failed.
        """
        answer = self._drive(run, None if self._logs is None else self._logs / run.folder)
        return [self._row(run, place, found, answer) for place, found in enumerate(answer["requests"])]

    def warm(self, run: LoadRun, count: int) -> None:
        """Send `count` requests of the arm one after another; every model of it at least once. Nothing is recorded."""
        turns = len(self._settings.arms[run.arm].model)
        if count:
            self._drive(replace(run, scenario="singlestream", rate=0.0, queries=max(count, turns)), None)

    def _drive(self, run: LoadRun, logs: Path | None) -> dict[str, Any]:
        return self._ask(
            {
                "scenario": run.scenario,
                "rate": run.rate,
                "queries": run.queries,
                "seed": run.seed,
                "payloads": payloads(self._settings, self._settings.arms[run.arm], self._samples),
                "concurrency": self._settings.concurrency,
                "timeout_s": self._settings.timeout_s,
                "logs": None if logs is None else str(logs),
            }
        )

    def _row(self, run: LoadRun, place: int, found: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        sample = self._samples[found["sample"]]
        return {
            **found,
            "arm": run.arm,
            "phase": run.phase,
            "scenario": run.scenario,
            "rate": run.rate,
            "round": run.round,
            "index": place,
            "prompt": sample.prompt,
            "seed": sample.seed,
            "steps": sample.steps,
            "deployment": self._deployment,
            "bound_ms": self._settings.bound.p99_ms if run.phase == "search" and self._settings.bound else None,
            "generator_cpu": answer["generator_cpu"],
        }

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise RunError(f"the load generator ended with exit code {self._child.returncode}: {last[:300]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _environment() -> dict[str, str]:
    """The child runs this very code, whatever folder it starts in: a `serve.py` of somebody's is no package of ours."""
    home = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))}
