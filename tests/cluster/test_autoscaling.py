"""What a cluster with an autoscaler may grow to, and the GPUs that a run there is given before they are there."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.nodes import Cluster, cluster, wait_for

pytestmark = pytest.mark.slow

#: In a process of its own: what the cluster may grow to, and the GPUs for `auto`, 0 and 1 a worker.
ASK = """
import json, sys, ray
from sdxl_ray.config.recipe import load, override
from sdxl_ray.distributed.cluster import gpus_per_worker
from sdxl_ray.distributed.capacity import ClusterCapacity
from sdxl_ray.errors import UserError

ray.init(address=sys.argv[1], log_to_driver=False)

def gpus(wanted):
    try:
        return gpus_per_worker(override(load("tiny_lora"), {"resources.gpus_per_worker": wanted}))
    except UserError as error:
        return str(error)

room = ClusterCapacity.now()
found = {"grows": room.grows, "declared": room.declared is not None}
print(json.dumps(found | {"gpus": [gpus(wanted) for wanted in ("auto", 0, 1)]}))
"""

#: Of Ray's own autoscaler; its machines are pretended.
PRETENDED = {
    "cluster_name": "pretended",
    "max_workers": 4,
    "provider": {"type": "fake_multinode"},
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 0},
        "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 4},
    },
    "head_node_type": "ray.head.default",
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "idle_timeout_minutes": 1,
    "upscaling_speed": 1.0,
}


def _asked(running: Cluster, home: Path) -> dict[str, Any]:
    ended = running.run(Path(sys.executable).name, "-c", ASK, running.address, HOME=str(home))
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_gpus_that_are_not_there_yet_are_waited_for_where_an_autoscaler_adds_nodes(tmp_path: Path) -> None:
    temp = Path(tempfile.mkdtemp(prefix="sr"))
    file = temp / "cluster.yaml"
    file.write_text(yaml.safe_dump(PRETENDED))
    try:
        with cluster(temp, more=("--autoscaling-config", str(file)), RAY_FAKE_CLUSTER="1") as running:
            wait_for("the autoscaler's status", lambda: _asked(running, tmp_path)["grows"], 120)
            auto, none, one = _asked(running, tmp_path)["gpus"]
            assert "set resources.gpus_per_worker=1 to wait for them, or 0" in auto
            assert (none, one) == (0, 1)
            shutil.copy(file, tmp_path / "ray_bootstrap_config.yaml")  # as `ray up` leaves it on the head
            assert _asked(running, tmp_path) == {"grows": True, "declared": True, "gpus": [1, 0, 1]}
            words = ("--json", "--address", running.address, "--storage", str(tmp_path / "runs"))
            doctor = running.run(Path(sys.executable).name, "-m", "sdxl_ray", "doctor", *words, HOME=str(tmp_path))
            reported = json.loads(doctor.stdout)
            (added,) = [one["value"] for one in reported["findings"] if one["name"] == "autoscaler"]
            assert added.endswith("1 node with 1 CPUs, 4 nodes with 1 CPUs and 1 GPUs")
            assert "the autoscaler may add GPUs" in reported["can_train"][-1]
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def test_a_cluster_that_was_started_by_hand_does_not_grow(two_nodes: Cluster, tmp_path: Path) -> None:
    found = _asked(two_nodes, tmp_path)
    assert (found["grows"], found["gpus"][:2]) == (False, [0, 0])
    assert found["gpus"][2] == "resources.gpus_per_worker=1 and this cluster has no GPU: set it to auto or 0"
