"""How many replicas of each deployment are running, as Serve's controller says. Autoscaling changes it at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

#: Running replicas by deployment.
Counts = dict[str, int]
CountReplicas = Callable[[], Awaitable[Counts]]


def of_this_application() -> CountReplicas:
    """A function that counts the running replicas of this replica's application. Call it within a replica."""
    from ray import serve

    application = serve.get_replica_context().app_name

    async def count() -> Counts:
        found = (await asyncio.to_thread(serve.status)).applications.get(application)
        deployments = found.deployments if found is not None else {}
        return {name: one.replica_states.get("RUNNING", 0) for name, one in deployments.items()}

    return count
