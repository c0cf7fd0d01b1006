"""Settings of a load test: what they mean, the order of runs, the library, and what bad ones are told."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.config.experiment import load_experiment
from sdxl_ray.config.load_profile import LoadProfile
from sdxl_ray.errors import UserError
from sdxl_ray.metrics.latency import summaries
from serve.loadtest.config import LoadTest, load_config, names, parse
from serve.loadtest.endpoint import deployment_of
from serve.loadtest.generator import Generator
from serve.loadtest.library import library, payloads, shares
from serve.loadtest.plan import abba, runs
from serve.loadtest.run import claim
from serve.loadtest.search import search
from serve.loadtest.table import describe
from serve.loadtest.trace import timed
from tests.conftest import Here

TWO = {"arms": {"base": {"model": "base"}, "lora": {"model": "lora"}}, "rates": [1, 3], "queries": 5}


def test_shipped_load_tests_are_whole() -> None:
    assert names() == ["p99", "quick"]
    for name in names():
        assert load_config(name, {}).rates
    assert load_experiment("demo").load is not None


def test_settings_are_laid_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: quick\narms: {a: {model: [base, lora]}}\n")
    test = load_config(str(tmp_path / "mine.yaml"), {"rates": 2, "steps": {"4": 1, "20": 3}, "arms.b.model": "lora"})
    assert test.rates == (2.0,) and test.mix == {4: 1.0, 20: 3.0}
    assert test.arms["a"].model == ("base", "lora") and test.arms["b"].model == ("lora",)
    assert load_config("quick", {"url": "http://host:1/v1/"}).url == "http://host:1"
    same = test.model_copy(update={"url": "http://elsewhere:1"})
    assert same.identity == test.identity != test.model_copy(update={"seed": 1}).identity


def test_arms_take_turns_forwards_and_backwards() -> None:
    order = [(run.rate, run.round, run.arm) for run in runs(parse(TWO, "two"), ["base", "lora", "full"])]
    assert [arm for _, _, arm in order[:6]] == ["base", "lora", "full", "full", "lora", "base"]
    assert [rate for rate, _, _ in order] == [1.0] * 6 + [3.0] * 6
    assert abba(["a", "b"], 2) == ["a", "b"] and abba(["a", "b"], 1) == ["b", "a"]
    seeds = {(run.rate, run.round): set[int]() for run in runs(parse(TWO, "two"), ["base", "lora"])}
    for run in runs(parse(TWO, "two"), ["base", "lora"]):
        seeds[run.rate, run.round].add(run.seed)
    assert all(len(found) == 1 for found in seeds.values())  # every arm meets the same arrivals
    longer = parse({**TWO, "duration_s": 4}, "longer")
    assert [run.queries for run in runs(longer, ["base"])] == [5, 5, 12, 12]


def test_the_library_is_the_same_for_every_arm_and_has_the_mix() -> None:
    test = parse({**TWO, "steps": {"4": 1, "20": 3}, "subject": "a robot"}, "mix")
    samples = library(test)
    assert samples == library(test)
    assert Counter(sample.steps for sample in samples) == {4: 16, 20: 48}
    assert len({sample.seed for sample in samples}) == len(samples)
    assert samples[0].prompt == "a photo of a robot"
    one, two = (payloads(test, test.arms[name], samples)[0] for name in ("base", "lora"))
    assert [{**body, "model": ""} for body in one] == [{**body, "model": ""} for body in two]
    assert one[0]["model"] == "base" and one[0]["num_inference_steps"] == samples[0].steps


def test_shares_are_exact_and_whole() -> None:
    assert shares({4: 1, 20: 1, 50: 1}, 64) == {4: 22, 20: 21, 50: 21}
    assert sum(shares({1: 0.3, 2: 0.0001, 3: 7}, 64).values()) == 64


def test_adapters_are_sent_with_their_strengths() -> None:
    arm = {"model": "base", "adapters": [{"name": "lora", "scale": 0.5}]}
    test = parse({**TWO, "arms": {"two": arm}}, "adapters")
    body = payloads(test, test.arms["two"], library(test))[0][0]
    assert body["adapters"] == [{"name": "lora", "scale": 0.5, "down": 1.0, "mid": 1.0, "up": 1.0}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": [0]}, "rates.0 = 0"),
        ({"rates": [-1]}, "greater than 0"),
        ({"rates": [float("nan")]}, "rates.0 = nan"),
        ({"rates": []}, "needs rates"),
        ({"rates": [1, 1]}, "the same rate twice"),
        ({"queries": 0}, "queries = 0"),
        ({"rounds": 0}, "rounds = 0"),
        ({"scenario": "offline"}, "rates belongs to scenario server"),
        ({"scenario": "offline", "rates": [], "bound": {"p99_ms": 5}}, "bound belongs to scenario server"),
        ({"scenario": "singlestream", "rates": [], "duration_s": 3}, "duration_s belongs to scenario server"),
        ({"scenario": "sever"}, "scenario = 'sever'"),
        ({"bound": {"p99_ms": 0}}, "bound.p99_ms = 0"),
        ({"steps": {}}, "steps is empty"),
        ({"steps": {"4": 0}}, "steps.4 = 0"),
        ({"steps": 0}, "steps"),
        ({"rats": [1]}, "did you mean 'rates'"),
        ({"url": "localhost:8000"}, "write it as http://127.0.0.1:8000"),
        ({"arms": {"a": {"model": []}}}, "arms.a.model"),
        ({"arms": {"a": {"model": "base", "adaptrs": []}}}, "did you mean 'adapters'"),
        ({"size": "big"}, "size = 'big'"),
        ({"guidance_scale": float("inf")}, "guidance_scale = inf"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")) as reported:
        parse({**TWO, **settings}, "bad")
    assert "\n" not in str(reported.value)


def test_an_experiment_refuses_the_same() -> None:
    with pytest.raises(ValueError, match="needs rates"):
        LoadProfile.model_validate({"scenario": "server"})


def test_the_search_ends_between_what_holds_and_what_does_not() -> None:
    test = parse({**TWO, "bound": {"p99_ms": 100, "probes": 8, "queries": 3}}, "bound")
    asked: dict[str, list[float]] = {"base": [], "lora": []}
    turns: list[str] = []

    def take(run: Any) -> list[dict[str, Any]]:
        asked[run.arm].append(run.rate)
        turns.append(run.arm)
        known = {"arm": run.arm, "phase": run.phase, "rate": run.rate, "bound_ms": 100.0}
        slow = 10.0 if run.arm == "base" else 1e-3  # base holds up to 10/s, lora whatever is tried
        return [{**known, "status": 200, "latency_ms": slow * run.rate}] * run.queries

    said: list[str] = []
    search(test, take, said.append)
    assert asked["base"][:5] == asked["lora"][:5] == [1, 2, 4, 8, 16]
    found = max(rate for rate in asked["base"] if rate <= 10)
    assert found > 9 and [len(rates) for rates in asked.values()] == [8, 8]
    assert turns[:4] == ["base", "lora", "lora", "base"]  # a machine that drifts slows both
    assert said == [f"base: p99 <= 100 ms up to {found:g}/s", "lora: p99 <= 100 ms up to >= 128/s"]

    def full(run: Any) -> list[dict[str, Any]]:
        return [{**row, "status": 429} for row in take(run)]

    search(test, full, said.append)
    assert said[2] == "base: no rate tried keeps p99 <= 100 ms"


def test_whether_arms_share_replicas_is_what_the_endpoint_tells() -> None:
    arms = {name: {"model": name} for name in ("base", "lora", "full")}
    groups: dict[str, str | None] = {"base": "weights", "lora": "weights", "full": "weights-full"}

    def reported(known: Any, *names: str, **more: Any) -> str:
        return deployment_of(parse({**TWO, "arms": {name: arms[name] for name in names}, **more}, "arms"), known)

    assert reported(groups, "base", "lora") == "shared"
    assert reported(groups, "base", "full") == reported(groups, "base", "full", deployment="isolated") == "isolated"
    assert reported(groups, "base", "lora", "full") == "partly shared"
    with pytest.raises(UserError, match=r"arms 'base' and 'lora' share replicas .*: set own_replicas"):
        reported(groups, "base", "lora", deployment="isolated")
    other = dict.fromkeys(groups)  # another server does not tell, and is believed
    assert reported(other, "base", "lora", deployment="isolated") == "isolated"


def test_a_server_that_stays_full_sheds_offline_requests_in_the_end() -> None:
    class Full(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(429)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Full)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    plain = {"arms": {"base": {"model": "base"}}, "scenario": "offline", "rates": [], "queries": 2, "rounds": 1}
    test = parse({**plain, "timeout_s": 1, "url": f"http://127.0.0.1:{server.server_port}"}, "full")
    try:
        with Generator(test) as generator:
            rows = generator.run(next(runs(test, ["base"])))
    finally:
        server.shutdown()
        server.server_close()
    assert [row["status"] for row in rows] == [429, 429]
    assert all(row["refused"] >= 1 and row["done_s"] < 30 for row in rows)
    (found,) = summaries(rows)
    assert (found.shed, found.refused) == (2, sum(row["refused"] for row in rows))
    assert f"the server was full {found.refused} times" in describe(rows)


def test_a_folder_has_one_load_test(tmp_path: Path) -> None:
    claim(tmp_path / "load", "one")
    claim(tmp_path / "load", "one")
    with pytest.raises(UserError, match="another load test"):
        claim(tmp_path / "load", "two")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot hold a load test"):
        claim(tmp_path / "file" / "load", "one")
    (tmp_path / "load" / "loadtest.json").write_text("[]")
    with pytest.raises(UserError, match="is damaged: delete it"):
        claim(tmp_path / "load", "one")


def test_a_trace_that_lacks_samples_is_refused(tmp_path: Path) -> None:
    event = '{"name":"Sample","cat":"default","ph":"b","pid":1,"id":0,"ts":%s,"args":{"sample_seq":%d,"query_seq":0,'
    event += '"sample_idx":7,"issue_start_ns":1000,"complete_ns":2500000}},\n'
    (tmp_path / "trace").write_text('{"traceEvents":[\n' + event % ("2000.5", 0) + event % ("3000", 1))
    first, second = timed(tmp_path / "trace", 2)
    assert (first.sample, first.intended_s, first.latency_ms) == (7, 0.0020005, 2.5)
    assert second.issued_s == pytest.approx(0.003001)
    with pytest.raises(ValueError, match="2 of 3 samples"):
        timed(tmp_path / "trace", 3)


def test_who_does_not_answer_is_told_at_once(here: Here) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    code, _, said = here("loadtest", "quick", "--url", url)
    assert code == 2 and f"{url!r} does not answer" in said and said.count("\n") == 1


def test_another_server_is_no_endpoint(here: Here) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {"/v1/models": b'{"data": [{"id": "base"}]}'}.get(self.path.removeprefix("/good"), b"hello")
            self.send_response(200 if self.path.startswith("/good") else 418)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        code, _, said = here("loadtest", "quick", "--url", url)
        assert code == 2 and "answers 418" in said
        code, _, said = here("loadtest", "quick", "arms.a.model=bsae", "--url", f"{url}/good")
        assert code == 2 and "arm 'a': the endpoint has no model 'bsae' that is ready: did you mean 'base'" in said
        code, _, said = here("loadtest", "quick", "api_key_env=NO_SUCH_KEY", "--url", url)
        assert code == 2 and "no NO_SUCH_KEY" in said
    finally:
        server.shutdown()
        server.server_close()


def test_without_loadgen_one_line_says_what_to_install(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, said = here("loadtest", "quick")
    assert code == 2 and said == "error: load tests need MLPerf LoadGen: pip install 'sdxl-ray[loadtest]'\n"
    code, _, said = here("compare", "demo")
    assert code == 2 and "sdxl-ray[loadtest]" in said


def test_settings_survive_json() -> None:
    test = parse({**TWO, "steps": {"4": 1, "20": 3}, "bound": {"p99_ms": 900}}, "whole")
    assert LoadTest.model_validate(json.loads(test.model_dump_json())) == test
