"""Every use of Ray's private API outside of Serve (see `serve/_ray_private.py`).

pyproject.toml caps Ray at the next minor version. `tests/distributed/test_ray_private.py` fails when a name or a
signature that is used here has changed: check the function, then raise the cap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: The resource that only the head node has. `ray.nodes()` has no field that names the head.
HEAD_RESOURCE = "node:__internal_head__"


def cluster_token() -> dict[str, str]:
    """The HTTP header with the token of this process; empty without a token.

    Private: Ray has no public call that reads the token, which is in a variable, in a file or generated.
    """
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # a compiled module

    header: dict[str, str] = AuthenticationTokenLoader.instance().get_token_for_http_header()
    return header


def ask_head(address: str, token: Mapping[str, str], timeout_s: float) -> None:
    """Ask the head at host:port for its cluster's id. Raises grpc.RpcError when it refuses or does not answer.

    Private: `ray.init` is the only public way to reach a head. It tries for minutes and cannot be given a limit.
    """
    import grpc
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with grpc.insecure_channel(address) as channel:
        stub = NodeInfoGcsServiceStub(channel)
        stub.GetClusterId(GetClusterIdRequest(), timeout=timeout_s, metadata=tuple(token.items()))


def node_groups() -> list[Any]:
    """The node groups that the platform declared to Ray, each with resources, min_count and max_count (-1: no limit).

    Private: `ray.nodes()` and `ray.cluster_resources()` know only the nodes that are alive.
    """
    import ray

    found = ray._private.state.state.get_cluster_config()
    return [] if found is None else list(found.node_group_configs)


def autoscaler_status() -> bytes | None:
    """The JSON that the autoscaler's monitor last published; None without a monitor.

    Private: `ray status` prints it for people, and there is no public call that returns it.
    """
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    status: bytes | None = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    return status


def dashboard_url() -> str | None:
    """HOST:PORT of the cluster's dashboard as the head recorded it; None without one.

    Private: only the context that `ray.init` returns has the URL, and a process that was connected earlier lacks it.
    """
    from ray._private.services import get_webui_url_from_internal_kv

    url: str | None = get_webui_url_from_internal_kv()
    return url


def launcher_config(plain: dict[str, Any]) -> dict[str, Any]:
    """A cluster file as `ray up` completes and validates it. `plain` may be changed.

    Raises jsonschema.ValidationError, and what Ray raises for an unknown provider.
    Private: `ray up` is the only public way to validate a file, and it starts the cluster.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(plain)
    validate_config(config)
    return config


def azure_template() -> dict[str, Any]:
    """The deployment template that Ray's launcher sends to Azure for each machine.

    Private: the template names the parameters that a node_config may set, and is nowhere documented.
    """
    import ray.autoscaler._private._azure as azure

    text = (Path(azure.__file__).parent / "azure-vm-template.json").read_text(encoding="utf-8")
    template: dict[str, Any] = json.loads(text)
    return template


def experiment_folder() -> tuple[Any, str]:
    """In a training worker: pyarrow's file system of Ray Train's experiment folder, and the path in it.

    Private: the public context has the experiment's name alone. Ray says of `get_storage` that what it returns may
    change between minor versions.
    """
    from ray.train import get_context

    storage = get_context().get_storage()
    return storage.storage_filesystem, str(storage.experiment_fs_path)


def trainer_class() -> type[Any]:
    """TorchTrainer that leaves Ctrl-C to `sdxl_ray.interrupts`; defined here, since Ray is imported late.

    Private: Ray Train V2 installs a handler for SIGINT and leaves it after `fit`, so that the process would ignore
    Ctrl-C from then on. No setting turns it off.
    """
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types here
        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    return Trainer
