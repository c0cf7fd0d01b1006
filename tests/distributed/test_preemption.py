"""A spot node that is announced to go: the run writes a checkpoint at once, and goes on with what is left."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdxl_ray.config.recipe import override
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import read
from tests.distributed.conftest import quick, words
from tests.nodes import Cluster, cluster, stop, wait_for

pytestmark = pytest.mark.chaos

#: Node ids, the head's last.
NODES = """
import ray
from sdxl_ray.distributed.nodes import alive
ray.init(address="auto", logging_level="ERROR")
print(*(node.id for node in reversed(alive())))
"""


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="sr"))
    try:
        with cluster(folder / "t", RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="1") as made:
            made.add()
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.exhaustive
def test_a_node_that_will_be_taken_away_costs_no_step(two_nodes: Cluster, tmp_path: Path) -> None:
    recipe = override(
        quick("tiny_lora", optim__steps=400, checkpoint__every=1000, evaluation__scores="never"),
        {"parallel.workers": [1, 2]},
    )
    command = [sys.executable, "-m", "sdxl_ray", "train", "tiny_lora", *words(recipe, "tiny_lora")]
    command += ["--name", "run", "--address", two_nodes.address, "--storage", str(tmp_path)]
    run = tmp_path / "run"
    driver = subprocess.Popen(command, cwd=tmp_path, env=two_nodes.environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for("the first evaluation", (run / "samples" / "grid.png").is_file, 300)
        leaving = two_nodes.run("python", "-c", NODES, RAY_ADDRESS=two_nodes.address).stdout.split()[0]
        why = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
            "60",
        ]
        drained = two_nodes.run("ray", "drain-node", "--address", two_nodes.address, "--node-id", leaving, *why)
        assert drained.returncode == 0, drained.stderr
        wait_for("a checkpoint", lambda: list(run.glob("checkpoints/step-*/manifest.json")), 60)
        saved = int(next(run.glob("checkpoints/step-*/manifest.json")).parent.name.removeprefix("step-"))
        two_nodes.nodes[-1].kill()
        _, reported = driver.communicate(timeout=300)
    finally:
        stop(driver)
    assert driver.returncode == 0, reported
    rows = read(run / "records", "steps").to_pylist()
    assert [row["step"] for row in rows] == list(range(1, 401))
    assert saved < 400
    assert rows[saved - 1]["workers"] == 2
    assert rows[-1]["workers"] == 1
    assert Artifact.open(run / "artifact").manifest.step == 400
