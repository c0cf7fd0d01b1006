"""What `_ray_private.py` uses of Ray is there, with the signature that it is called with.

A failure here names what a new version of Ray has changed: mend the function, then raise the cap in pyproject.toml.
"""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from sdxl_ray.distributed import _ray_private
from tests.bucket import free_port

#: Where it is -> the arguments that it is called with; None for what is not called, or is compiled.
USED: dict[str, tuple[str, ...] | None] = {
    "ray._raylet:AuthenticationTokenLoader.instance": None,
    "ray._raylet:AuthenticationTokenLoader.get_token_for_http_header": None,
    "ray.core.generated.gcs_service_pb2:GetClusterIdRequest": None,
    "ray.core.generated.gcs_service_pb2_grpc:NodeInfoGcsServiceStub": ("channel",),
    "ray._private.state:state.get_cluster_config": (),
    "ray._private.ray_constants:DEBUG_AUTOSCALING_STATUS": None,
    "ray.experimental.internal_kv:_internal_kv_get": ("key",),
    "ray._private.services:get_webui_url_from_internal_kv": (),
    "ray.autoscaler._private.util:prepare_config": ("config",),
    "ray.autoscaler._private.util:validate_config": ("config",),
    "ray.autoscaler._private._azure:__file__": None,
    "ray.train.torch:TorchTrainer._register_sigint_handler": ("self", "controller"),
    "ray.train.v2.api.context:DistributedTrainContext.get_storage": ("self",),
}


@pytest.mark.parametrize("where", USED)
def test_what_is_used_is_there_and_takes_these_arguments(where: str) -> None:
    module, _, path = where.partition(":")
    why = f"ray {ray.__version__}: {where} has changed, and sdxl_ray/distributed/_ray_private.py uses it"
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{why}: {error}")
    arguments = USED[where]
    if arguments is not None:
        signature = inspect.signature(found)
        try:
            signature.bind(*arguments)
        except TypeError as error:
            pytest.fail(f"{why}: it takes {signature}: {error}")


def test_a_cluster_config_has_the_fields_that_are_read() -> None:
    """Of each node group: `resources` and `max_count`, below 0 where there is no limit."""
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    why = f"ray {ray.__version__}: autoscaler_pb2 has changed, and ClusterCapacity reads it"
    config = ClusterConfig()
    group = config.node_group_configs.add()
    assert {"resources", "max_count"} <= {field.name for field in group.DESCRIPTOR.fields}, why


def test_a_storage_context_has_the_experiment_folder(tmp_path: Path) -> None:
    from ray.train.v2._internal.execution.storage import StorageContext

    context = StorageContext(str(tmp_path), "experiment", read_only=True)
    assert context.experiment_fs_path == str(tmp_path / "experiment"), "experiment_folder has to change"
    assert context.storage_filesystem.type_name == "local", "experiment_folder has to change"


def test_the_head_has_the_resource_of_a_head() -> None:
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    assert HEAD_NODE_RESOURCE_NAME == _ray_private.HEAD_RESOURCE


def test_the_token_of_the_environment_is_the_one_that_is_sent() -> None:
    """In a process of its own: Ray reads a token once."""
    code = "from sdxl_ray.distributed._ray_private import cluster_token; print(cluster_token())"
    token = "0123456789abcdef" * 4
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert token in ended.stdout


def test_where_no_head_listens_the_error_is_that_of_grpc() -> None:
    with pytest.raises(grpc.RpcError) as refused:
        _ray_private.ask_head(f"127.0.0.1:{free_port()}", {}, 2)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
