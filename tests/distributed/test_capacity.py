"""Room: what fits on the nodes that there are, and on those that an autoscaler may add."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.distributed.capacity import ClusterCapacity, NodeKind, launched, named_types
from sdxl_ray.errors import UserError
from sdxl_ray.search.search import require_capacity
from tests.cluster.files import CLOUDS, FOLDER, plain

HEAD = NodeKind({"CPU": 8.0}, 1)
WORKER = {"CPU": 8.0, "GPU": 1.0}
NEED = {"CPU": 4, "GPU": 1}


def test_a_worker_is_on_one_node() -> None:
    two = ClusterCapacity((HEAD, HEAD))
    assert two.workers({"CPU": 4}) == 4
    assert two.workers({"CPU": 5}) == 2
    assert two.workers({"CPU": 16}) == 0
    with pytest.raises(UserError, match=r"a worker needs 16 CPUs on one node, the largest has 8: lower resources.cpus"):
        require_capacity(two, {"CPU": 16}, 1)
    with pytest.raises(UserError, match=r"a trial needs 20 CPUs \(parallel.workers=4\), the cluster has 16"):
        require_capacity(two, {"CPU": 5}, 4)
    with pytest.raises(UserError, match="a trial needs 3 workers of 5 CPUs, the nodes have room for 2"):
        require_capacity(two, {"CPU": 5}, 3)
    assert require_capacity(two, {"CPU": 4}, 2) == 2


def test_declared_nodes_count_before_they_are_there() -> None:
    room = ClusterCapacity((HEAD,), True, (HEAD, NodeKind(WORKER, 8)))
    assert room.has("GPU") and not ClusterCapacity((HEAD,)).has("GPU")
    assert room.workers(NEED) == 8
    assert (require_capacity(room, NEED, 4), require_capacity(room, NEED, 4, most=1)) == (2, 1)
    with pytest.raises(UserError, match="a trial needs 9 GPUs"):
        require_capacity(room, NEED, 9)
    assert ClusterCapacity((HEAD,), True, (HEAD, NodeKind(WORKER, None))).workers(NEED) is None  # without a limit


def test_where_nobody_knows_the_end_one_trial_is_begun() -> None:
    room = ClusterCapacity((HEAD,), True)
    assert room.workers(NEED) is None
    assert require_capacity(room, NEED, 4) == 1
    assert require_capacity(ClusterCapacity((HEAD, *[NodeKind(WORKER, 1)] * 4), True), NEED, 2) == 2
    assert require_capacity(room, NEED, 4, most=8) == 8  # whoever says so knows


@pytest.mark.parametrize("name", CLOUDS)
def test_the_launchers_file_says_how_many_there_may_be(name: str) -> None:
    kinds = launched(FOLDER / f"{name}.yaml")
    assert kinds is not None
    assert ClusterCapacity((), True, kinds).workers({"GPU": 1}) == plain(name)["max_workers"] >= 4


def test_a_file_that_is_none_says_nothing(tmp_path: Path) -> None:
    assert launched(tmp_path / "none.yaml") is None
    (tmp_path / "list.yaml").write_text("[1]")
    assert launched(tmp_path / "list.yaml") is None


@pytest.mark.parametrize(
    ("report", "grows"),
    [
        (None, False),
        ({"active_nodes": {"node_1f2e": 1, "node_77aa": 1}, "pending_launches": {}}, False),  # started by hand
        ({"active_nodes": {"head": 1}, "pending_launches": {}}, True),
        ({"active_nodes": {}, "pending_launches": {"gpu": 1}}, True),
    ],
)
def test_an_autoscaler_is_known_by_its_types(report: Any, grows: bool) -> None:
    assert named_types(json.dumps({"autoscaler_report": report}).encode()) == grows
    assert not named_types(None)
