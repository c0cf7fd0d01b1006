"""The connection to Ray: an existing cluster by address, the job's own cluster, or a local one for this command."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.distributed._ray_private import ask_head, cluster_token
from sdxl_ray.distributed.capacity import ClusterCapacity
from sdxl_ray.distributed.exported import exported
from sdxl_ray.errors import UserError

#: A cluster that has not answered by then is none.
_ANSWER_WITHIN_S = 10
_WITH_A_TOKEN = "export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token of the machine that started Ray"
_NO_PREEMPTION_WATCH = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


@contextmanager
def connected(address: str | None, cpus: int, *, dashboard: bool = False) -> Iterator[None]:
    """Inside, Ray is there. A cluster that this starts ends with it; one that was found is left as it was.

    `cpus`: what a local cluster must offer at least; more than the machine has is allowed, and slow.
    `dashboard`: whether a local one runs Ray's (on loopback). Ray Train asks it whether a run is still there; without
    it, what the workers of a run that was cut had reserved is never given back.
    Raises UserError when no cluster answers at `address` or it wants another token, and for an address that is no
    host:port.
    """
    found = address or os.environ.get("RAY_ADDRESS")
    if found and "://" in found:
        raise UserError(
            f"address {found!r} is not that of a Ray cluster but of something in front of it (Ray Client, the "
            "dashboard): give HOST:6379, with the head's host and its --port, or auto on one of its nodes"
        )
    if ray.is_initialized():
        yield
        return
    try:
        if found:
            require_answer(found)
            with _keeping_sigterm():
                ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR)
        else:
            with _export_to_processes(), _keeping_sigterm():
                ray.init(
                    address="local",
                    num_cpus=max(cpus, os.cpu_count() or 1),
                    include_dashboard=dashboard,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
    except UserError:
        raise
    except AuthenticationError as error:  # a sentence that says what is wrong, and many more
        reason = str(error).partition(". ")[0]
        raise UserError(f"Ray's token: {reason}; {_WITH_A_TOKEN}") from None
    except Exception as error:  # Ray raises a plain Exception where a machine is too busy to start it
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not found:
            raise UserError(f"Ray did not start on this machine: {first}") from None
        otherwise = "give no address" if address else "unset RAY_ADDRESS"
        raise UserError(
            f"no Ray cluster at {found!r}: {first}; start one with ray start --head, or {otherwise}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Inside, `ray.init` installs its own handler of SIGTERM, which exits with 15; a command's own comes back after."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _export_to_processes() -> Iterator[None]:
    """Inside, a cluster that is started has an address that all its processes know.

    Where another Ray runs on this machine, a process of Ray Train that asks for the state of its run would not know
    whom to ask, and never give back what the workers of a run that was cut had reserved. And nobody takes this machine
    away from itself: Ray Train need not start a process that looks out for that.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    with (
        exported({"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": address}),
        exported(_NO_PREEMPTION_WATCH, unless_set=True),
    ):
        yield


def require_answer(address: str) -> None:
    """Raise OSError when no Ray answers at host:port; Ray itself would go on trying for minutes.

    Raises UserError when one answers that wants another token than this process has.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    socket.create_connection((host, int(port)), timeout=_ANSWER_WITHIN_S).close()
    import grpc

    # What Ray would send: since 2.60 it sends a token to an address that it was given only under RAY_AUTH_MODE=token.
    token = cluster_token()
    try:
        ask_head(address, token, _ANSWER_WITHIN_S)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            has = "another token than this one" if token else "a token, and none is sent"
            raise UserError(f"the Ray cluster at {address!r} wants {has}: {_WITH_A_TOKEN}") from None
        raise OSError(f"something listens there, but no Ray answers ({error.code().name.lower()})") from None


def gpus_per_worker(recipe: Recipe) -> int:
    """GPUs that each worker gets: the recipe's number, or one where the cluster has any or declares that it may.

    Raises UserError for GPUs that there cannot be, and where only the recipe can say whether to wait for some.
    """
    wanted = recipe.resources.gpus_per_worker
    if wanted == 0:
        return 0
    capacity = ClusterCapacity.now()
    if capacity.has("GPU"):
        return 1
    unknown = capacity.grows and capacity.declared is None
    if wanted == "auto" and unknown:
        raise UserError(
            "this cluster has no GPU yet and an autoscaler that may add some: set resources.gpus_per_worker=1 to wait "
            "for them, or 0 to train on CPUs"
        )
    if wanted == 1 and not unknown:
        raise UserError("resources.gpus_per_worker=1 and this cluster has no GPU: set it to auto or 0")
    return 1 if wanted == 1 else 0
