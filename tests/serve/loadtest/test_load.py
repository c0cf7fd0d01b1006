"""Load on the real endpoint: whole rows, equal arrivals for every arm, the artifact's hash, the report's section."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.config.load_profile import LoadProfile
from sdxl_ray.config.recipe import load
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import Recorder, read
from sdxl_ray.report.build import write_report
from serve.loadtest.comparison import load_arms
from serve.loadtest.config import LoadTest, parse
from serve.loadtest.run import run_load_test
from tests.conftest import Here
from tests.report.synthetic import make

pytestmark = [pytest.mark.slow, pytest.mark.shares("url")]

ARMS = {
    "base": {"model": "base", "adapters": [{"name": "wordy", "scale": 0.5}]},
    "round": {"model": "round"},
    "both": {"model": ["base", "wordy"]},
}


def settings(url: str, **changes: Any) -> LoadTest:
    """Seconds of load."""
    quick = {"url": url, "arms": ARMS, "rates": [4], "queries": 6, "rounds": 2, "warmup": 1, "steps": {2: 1, 4: 1}}
    return parse({**quick, **changes}, "test")


def rows_of(home: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read(home / "records", "requests").to_pylist()
    return rows


def test_every_request_is_a_row_and_every_arm_meets_the_same(
    url: str, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    notes: list[dict[str, Any]] = []
    reported = run_load_test(settings(url), tmp_path, on_row=notes.append)
    rows = rows_of(tmp_path)
    assert len(rows) == len(reported) == 3 * 2 * 6
    hashes = {"base": "", **{name: Artifact.open(path).hash for name, path in artifacts.items()}}
    met = defaultdict(set)
    for row in rows:
        assert row["status"] == 200 and row["error"] is None, row
        assert row["artifact"] == hashes[row["model"]]
        assert row["adapters"] == (f"wordy={hashes['wordy']}" if row["arm"] == "base" else "")
        assert row["deployment"] == "shared"
        assert row["bytes"] > 1000 and row["batch"] >= 1 and row["started"]
        assert 0 < row["denoise_ms"] < row["server_ms"] < row["latency_ms"]
        # LoadGen's latency is of the intended time, and what was measured here agrees with it, as far as a busy machine
        # lets two threads look at their clocks at once.
        assert row["latency_ms"] == pytest.approx(1000 * (row["done_s"] - row["intended_s"]), abs=200)
        assert row["intended_s"] <= row["sent_s"] + 1e-6 <= row["done_s"]
        assert 0 < row["generator_cpu"] < 1
        request = (row["sample"], row["prompt"], row["seed"], row["steps"], round(row["intended_s"], 3))
        met[row["round"], row["index"]].add(request)
    assert len(met) == 12 and all(len(requests) == 1 for requests in met.values())
    assert len({row["seed"] for row in rows}) > 3 and {row["steps"] for row in rows} == {2, 4}
    turns = [row["model"] for row in rows if row["arm"] == "both"]
    assert turns == ["base", "wordy"] * 6
    assert (tmp_path / "loadgen" / "base-run-server-4-0" / "mlperf_log_summary.txt").is_file()

    again: list[dict[str, Any]] = []
    assert run_load_test(settings(url), tmp_path, on_row=again.append) == rows
    assert [row for row in again if row["kind"] == "note"] == []  # nothing was sent
    with pytest.raises(UserError, match="another load test"):
        run_load_test(settings(url, queries=7), tmp_path, on_row=again.append)


def test_the_command_prints_what_it_found(url: str, tmp_path: Path, here: Here) -> None:
    words = ("quick", "scenario=offline", "rates=[]", "queries=8", "rounds=1", "steps=2", "concurrency=3", "warmup=0")
    code, out, said = here("loadtest", *words, "arms.base.model=base", "--url", url, "--out", "load", "--json")
    assert code == 0, said
    (arm,) = json.loads(out)["arms"]
    assert (arm["arm"], arm["scenario"], arm["answered"], arm["shed"]) == ("base", "offline", 8, 0)
    assert arm["pictures_per_s"] > 0 and arm["latency_ms"]["p50"]["n"] == 8
    code, out, said = here("loadtest", *words, "arms.base.model=base", "--url", url, "--out", "load")
    assert code == 0 and "8*" in out and "images/s" in out, said


def test_an_arm_that_answers_nothing_is_an_error(url: str, tmp_path: Path) -> None:
    wrong = settings(url, arms={"base": {"model": "base"}}, steps=1000, warmup=0, rounds=1)
    with pytest.raises(RunError, match="no request succeeded; the first: 400"):
        run_load_test(wrong, tmp_path, on_row=lambda row: None)
    assert rows_of(tmp_path) == []


def test_a_comparison_has_one_load_test_of_its_own_artifacts(
    ray_cluster: None, url: str, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make(tmp_path, arms=("lora",))
    with Recorder(home / "records") as recorder:
        recorder.forget("requests")
    profile = LoadProfile(rates=(3.0,), queries=3, rounds=1, warmup=0, steps={2: 1.0})
    of = {"round": Artifact.open(artifacts["round"])}
    settings = {"recipe": load("tiny_lora"), "address": None, "on_row": lambda row: None}

    class Here:
        def __init__(self, config: Any) -> None:
            assert set(config.variants) == {"base", "round"}

        def __enter__(self) -> str:
            return url

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("serve.local.running", Here)  # the endpoint that is there already
    rows = load_arms(profile, artifacts=of, home=home, **settings)
    assert {row["arm"] for row in rows} == {"base", "round"} and len(rows) == 6
    monkeypatch.setattr("serve.local.running", None)  # what is whole is not run again
    assert len(load_arms(profile, artifacts=of, home=home, **settings)) == 6

    page = write_report(home).html.read_text()
    assert "Latency under load" in page and "Tuned against base" in page and "The arms shared replicas" in page
    other = {"round": Artifact.open(artifacts["wordy"])}
    with pytest.raises(TypeError):  # it would have to run again
        load_arms(profile, artifacts=other, home=home, **settings)
    assert rows_of(home) == []
