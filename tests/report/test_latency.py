"""The section of latency under load: what it says of the records, and what it says when there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.io.records import Recorder, read
from tests.report.synthetic import plain_of

pytestmark = pytest.mark.slow


def section_of(home: Path) -> dict[str, Any]:
    return next(section for section in plain_of(home)["sections"] if section["id"] == "latency")


def tables(section: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Caption's first words -> rows as {title: text}."""
    found = {}
    for block in section["blocks"]:
        if block["kind"] == "table":
            rows = [dict(zip(block["titles"], row, strict=True)) for row in block["rows"]]
            found[block["caption"].split()[0]] = rows
    return found


def test_every_arm_and_rate_has_its_figures(home: Path) -> None:
    found = tables(section_of(home))
    assert len(found["Latency"]) == 4 * 2 and len(found["Tuned"]) == 3 * 2
    busy = next(row for row in found["Latency"] if row["arm"]["text"] == "lora" and "2 " in row["load"]["text"])
    assert busy["answered"]["text"] == "118 of 120" and busy["shed"]["text"] == "1.7%"
    assert "n=118" in busy["p99 ms"]["small"] and "459" in busy["p99 ms"]["note"]
    rows = [row for row in read(home / "records", "requests").to_pylist() if row["arm"] == "lora" and row["rate"] == 2]
    good = sorted(row["latency_ms"] for row in rows if row["status"] == 200)
    assert busy["p50 ms"]["text"] == f"{good[58]:.0f}"
    slower = next(row for row in found["Tuned"] if row["arm"]["text"] == "dreambooth_lora")
    assert slower["p50 x base"]["text"] == "1.20" and slower["p50 x base"]["tone"] == "bad"
    p99 = slower["p99 x base"]  # of 120 requests, which show none
    assert (p99["tone"], p99["small"]) == ("", "no interval") and "too few" in p99["note"]


def test_curves_are_drawn_with_their_numbers(home: Path) -> None:
    panels = [panel for block in section_of(home)["blocks"] if block["kind"] == "panels" for panel in block["panels"]]
    assert [panel["title"] for panel in panels] == [
        "Latency, server, 1 queries/s",
        "Latency, server, 2 queries/s",
        "p50 against rate",
        "p99 against rate",
    ]
    assert all(len(panel["numbers"]["rows"]) in (4, 8) for panel in panels)


def test_another_artifact_than_the_scored_one_is_told(home: Path) -> None:
    same = "The artifacts that answered are those of the quality table"
    assert any(same in block.get("text", "") for block in section_of(home)["blocks"])
    rows = read(home / "records", "requests").to_pylist()
    with Recorder(home / "records") as recorder:
        for row in rows:
            if row["arm"] == "dreambooth":
                recorder.write("requests", {**row, "artifact": "0" * 64})
    (reported,) = [block for block in section_of(home)["blocks"] if block.get("tone") == "bad"]
    assert reported["text"].endswith("put under load for dreambooth.")


def test_without_a_load_test_it_says_so(home: Path) -> None:
    with Recorder(home / "records") as recorder:
        recorder.forget("requests")
    assert read(home / "records", "requests").num_rows == 0
    (only,) = section_of(home)["blocks"]
    assert only["text"].startswith("Latency under load is not measured") and only["tone"] == "muted"
