"""The dashboard shows what the code measures, and Ray's metrics port has it."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest
import requests

from serve.http.metrics import METRICS
from tests.serve.client import Client, wait_for

pytestmark = pytest.mark.shares("url")

SUFFIX = {"counter": "_total", "gauge": "", "histogram": "_bucket"}


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    dashboard = json.loads((resources.files("serve") / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for query in queries for name in re.findall(r"ray_sdxl_ray_\w+", query)}
    assert shown == {f"ray_{name}{SUFFIX[metric.kind]}" for name, metric in METRICS.items()}
    tags = {tag for query in queries for tag in re.findall(r"by \(([\w, ]+)\)", query) for tag in tag.split(", ")}
    assert tags <= {"le", *(tag for metric in METRICS.values() for tag in metric.tags)}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_metric_is_used_by_the_code() -> None:
    folder = Path(str(resources.files("serve")))
    code = "".join(file.read_text() for file in folder.rglob("*.py") if file.name != "metrics.py")
    assert set(re.findall(r'"(sdxl_ray_\w+)"', code)) == set(METRICS)


@pytest.mark.slow
def test_ray_publishes_them(client: Client) -> None:
    import ray

    assert client.draw(model="round").status == 200
    assert client.draw(model="nobody").status == 404
    node = next(node for node in ray.nodes() if node["Alive"])
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    expected = {
        f"ray_{name}{SUFFIX[m.kind]}"
        for name, m in METRICS.items()
        if name not in ("sdxl_ray_retries", "sdxl_ray_shed")
    }

    def published() -> bool:
        text = requests.get(address, timeout=10).text
        found = set(re.findall(r"^(ray_sdxl_ray_\w+)\{", text, re.MULTILINE))
        return expected <= found and 'status="404"' in text and 'variant="round"' in text

    wait_for(published, 60)
