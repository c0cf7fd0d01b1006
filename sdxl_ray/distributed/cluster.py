"""The connection to Ray: an existing cluster by address, the job's own cluster, or a local one for this command."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from sdxl_ray.config import Recipe
from sdxl_ray.errors import UserError


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[None]:
    """Inside, Ray is there. A cluster that this starts ends with it; one that was found is left as it was.

    `cpus`: what a local cluster must offer at least; more than the machine has is allowed, and slow.
    Raises UserError when no cluster answers at `address`.
    """
    if ray.is_initialized():
        yield
        return
    found = address or os.environ.get("RAY_ADDRESS")
    try:
        if found:
            _require_answer(found)
            ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=max(cpus, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = f"at {found!r}" if found else "on this machine"
        raise UserError(
            f"no Ray cluster {where}: {first}; start one with ray start --head, or give no address"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise OSError when nothing listens at host:port; Ray itself would go on trying for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def gpus_per_worker(recipe: Recipe) -> int:
    """GPUs that each worker gets: the recipe's number, or one where the cluster has any."""
    wanted = recipe.resources.gpus_per_worker
    has = int(ray.cluster_resources().get("GPU", 0))
    if wanted == "auto":
        return 1 if has else 0
    if wanted and not has:
        raise UserError("resources.gpus_per_worker=1 and this cluster has no GPU: set it to auto or 0")
    return wanted
