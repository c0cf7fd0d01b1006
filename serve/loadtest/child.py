"""The load generator's process: reads runs as JSON lines, drives each through LoadGen, answers with its requests.

    python -m serve.loadtest.child http://127.0.0.1:8000

A process of its own, so that neither the server's nor the caller's work delays an arrival. LoadGen calls from its
thread; an event loop in another thread sends. A line in: `{"scenario", "rate", "queries", "seed", "payloads",
"concurrency", "timeout_s", "logs"}`; a line out: `{"requests": [...], "generator_cpu": share of a core}`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import mlperf_loadgen as loadgen

from serve.loadtest.trace import Timed, timed

_PATH = "/v1/images/generations"
_TIMES = ("queue", "text", "denoise", "decode", "total")
_SCENARIOS = {
    "singlestream": loadgen.TestScenario.SingleStream,
    "server": loadgen.TestScenario.Server,
    "offline": loadgen.TestScenario.Offline,
}
#: A full server's answers, and how long the offline scenario then waits.
_FULL, _AGAIN_S = (429, 503), 0.1
#: Kept of LoadGen's files; its trace is read and its accuracy log is empty.
_KEPT = ("mlperf_log_summary.txt", "mlperf_log_detail.txt")


class Client:
    """Sends requests from an event loop in a thread, and tells LoadGen when each is answered."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._headers = f"{url}{_PATH}", {"Authorization": f"Bearer {key}"} if key else {}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.issued: list[dict[str, Any]] = []

    def begin(self, run: dict[str, Any]) -> None:
        """Make ready for a run. Its connections are its own: none is left half closed by an earlier one."""
        self._bodies = [[json.dumps(body).encode() for body in turn] for turn in run["payloads"]]
        self._models = [turn[0]["model"] for turn in run["payloads"]]
        self._timeout_s = run["timeout_s"]
        # The open scenarios never hold a request back; offline has everything at once, and no server takes that.
        self._limit = run["concurrency"] if run["scenario"] == "offline" else 0
        self.issued = []
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def end(self) -> None:
        """Close the run's connections."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()

    def issue(self, samples: list[Any]) -> None:
        """LoadGen's call: samples are due now. Returns at once."""
        now = time.monotonic()
        for sample in samples:
            turn = len(self.issued) % len(self._models)
            request = {"sample": sample.index, "model": self._models[turn], "issued": now}
            self.issued.append(request)
            self._loop.call_soon_threadsafe(self._start, sample.id, self._bodies[turn][sample.index], request)

    def _start(self, response_id: int, body: bytes, request: dict[str, Any]) -> None:
        task = self._loop.create_task(self._send(response_id, body, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, response_id: int, body: bytes, request: dict[str, Any]) -> None:
        try:
            async with self._slots:
                until = time.monotonic() + self._timeout_s
                await self._post(body, request)
                # Offline is about throughput: what a full server turned away is sent again, for as long as one request
                # may take; then it was shed.
                while self._limit and request["status"] in _FULL and time.monotonic() + _AGAIN_S < until:
                    request["refused"] = request.get("refused", 0) + 1
                    await asyncio.sleep(_AGAIN_S)
                    await self._post(body, request)
        except Exception as error:  # a lost connection is a result; LoadGen must hear of every request
            request |= {"status": 0, "error": f"{type(error).__name__}: {error}".rstrip(": ")[:200]}
        request.setdefault("bytes", 0)
        request["done"] = time.monotonic()
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(response_id, 0, 0)])

    async def _post(self, body: bytes, request: dict[str, Any]) -> None:
        assert self._session is not None
        request.setdefault("sent", time.monotonic())
        async with self._session.post(self._url, data=body) as answer:
            content = await answer.read()
            request |= {"status": answer.status, "bytes": len(content)}
            request |= _reported(answer.headers) if answer.status == 200 else {}
            request["error"] = None if answer.status == 200 else _message(content)

    async def _open(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Content-Type": "application/json", **self._headers}
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)
        self._slots = asyncio.Semaphore(self._limit or sys.maxsize)

    async def _close(self) -> None:
        assert self._session is not None
        await self._session.close()


def _reported(headers: Any) -> dict[str, Any]:
    """What the server says of its work, None where it says nothing."""
    times = {f"{name}_ms": _number(headers.get(f"x-sdxl-ray-{name}-ms")) for name in _TIMES}
    times["server_ms"] = times.pop("total_ms")
    reported = {name: headers.get(f"x-sdxl-ray-{name}") for name in ("artifact", "adapters")}
    return {**times, "batch": _number(headers.get("x-sdxl-ray-batch")), **reported}


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _message(content: bytes) -> str:
    """The message of the OpenAI error envelope, or the beginning of whatever came instead."""
    try:
        return str(json.loads(content)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")


def drive(client: Client, run: dict[str, Any]) -> dict[str, Any]:
    """One run of LoadGen against the client."""
    samples = len(run["payloads"][0])
    client.begin(run)
    library = loadgen.ConstructQSL(samples, samples, lambda _: None, lambda _: None)
    system = loadgen.ConstructSUT(client.issue, lambda: None)
    # A collection in the middle of a run would delay arrivals.
    gc.collect()
    gc.disable()
    wall, cpu = time.monotonic(), time.process_time()
    try:
        with tempfile.TemporaryDirectory(prefix="sdxl-ray-loadgen-") as folder:
            loadgen.StartTestWithLogSettings(system, library, _settings(run), _logs(folder))
            share = (time.process_time() - cpu) / (time.monotonic() - wall)
            found = timed(Path(folder) / "mlperf_log_trace.json", len(client.issued))
            _keep(Path(folder), run["logs"])
    finally:
        gc.enable()
        client.end()
        loadgen.DestroySUT(system)
        loadgen.DestroyQSL(library)
    return {"requests": _joined(client.issued, found), "generator_cpu": share}


def _settings(run: dict[str, Any]) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = _SCENARIOS[run["scenario"]]
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = run["queries"]
    settings.min_duration_ms = 0
    settings.server_target_qps = settings.offline_expected_qps = run["rate"] or 1.0
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = run["seed"]
    return settings


def _logs(folder: str) -> Any:
    logs = loadgen.LogSettings()
    logs.log_output.outdir = folder
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = True
    return logs


def _keep(folder: Path, target: str | None) -> None:
    if target is None:
        return
    Path(target).mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        shutil.copy(folder / name, target)


def _joined(issued: list[dict[str, Any]], found: list[Timed]) -> list[dict[str, Any]]:
    """Our half of each request (what was said) and LoadGen's (when), on one clock that begins at the first arrival."""
    # Between LoadGen's clock and ours lies what a call into Python takes: the least of many is nearest to nothing.
    offset = min(request["issued"] - each.issued_s for request, each in zip(issued, found, strict=True))
    first = found[0].intended_s
    rows = []
    for request, each in zip(issued, found, strict=True):
        if request["sample"] != each.sample:
            raise RuntimeError(f"LoadGen's trace has sample {each.sample} where {request['sample']} was sent")
        sent, done = request.pop("sent", None), request.pop("done")
        request.pop("issued")
        rows.append(
            {
                **request,
                "intended_s": each.intended_s - first,
                "sent_s": (done if sent is None else sent) - offset - first,
                "done_s": done - offset - first,
                "latency_ms": each.latency_ms,
            }
        )
    return rows


def main() -> None:
    """Answer runs until stdin ends."""
    client = Client(sys.argv[1], os.environ.get("SDXL_RAY_LOAD_KEY"))
    # LoadGen and its clients may print; the answers have a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(drive(client, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
