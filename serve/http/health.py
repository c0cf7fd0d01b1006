"""Which groups of replicas answer, and what they hold: asked again and again in the background of an ingress."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Literal

from serve.deployment_config import replica_bounds
from serve.http.protocol import ModelBody
from serve.replica.counts import CountReplicas, Counts
from serve.replica.placement import Placement

_PERIOD_S = 2.0
#: A group that has not answered for so long is starting again.
_SILENT_S = 20.0


class ReplicaHealth:
    """The state of every variant, as the replicas themselves tell it."""

    def __init__(self, layout: Placement, handles: dict[str, Any], count: CountReplicas | None = None) -> None:
        """count: counts the running replicas; None: every group has as many as its configuration starts with."""
        self._layout = layout
        self._bounds = {name: replica_bounds(group.deployment_config) for name, group in layout.groups.items()}
        self._running: Counts = {}
        self._described: set[str] = set()
        self._answers: dict[str, dict[str, Any]] = {}
        self._heard: dict[str, float] = {}
        self._failed: dict[str, str] = {}
        self._created = int(time.time())
        self._tasks = [asyncio.create_task(self._listen(group, handle)) for group, handle in handles.items()]
        if count is not None and any(low != high for low, high in self._bounds.values()):
            self._tasks.append(asyncio.create_task(self._count(count)))

    def stop(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()

    def replicas(self, group: str) -> int:
        """Replicas of a group for which requests are admitted, at least 1.

        A fixed number stays as it is while one is replaced. An autoscaled one is the number that is running; with none
        running, the first request makes Serve start one.
        """
        low, high = self._bounds[group]
        return min(max(self._running.get(group, low), low, 1), high)

    def starting(self, group: str) -> bool:
        """No replica of the group has ever answered."""
        return group not in self._heard

    def failed(self, group: str) -> str | None:
        """Why the group's replicas could not be started, if so."""
        return self._failed.get(group)

    @property
    def ready(self) -> bool:
        """A group answers, and none is still starting."""
        states = {self._state(group) for group in self._layout.groups}
        return "ready" in states and "starting" not in states

    def models(self) -> list[ModelBody]:
        """Every configured variant and its state."""
        return [self._model(name) for name in self._layout.places]

    def _model(self, name: str) -> ModelBody:
        place = self._layout.places[name]
        group = place.group
        answer = self._answers.get(group or "", {})
        stopped = answer.get("stopped", {})
        reason = place.reason or self._failed.get(group or "") or stopped.get(name)
        return ModelBody(
            id=name,
            created=self._created,
            artifact=answer.get("hashes", {}).get(name, place.artifact),
            kind=place.kind,
            state="stopped" if reason or group is None else self._state(group),
            reason=reason,
            adapters=[name for name in self._layout.combined(name) if name not in stopped],
            group=group,
        )

    def _state(self, group: str) -> Literal["ready", "starting", "stopped"]:
        if group in self._failed:
            return "stopped"
        heard = self._heard.get(group)
        return "ready" if heard is not None and time.monotonic() - heard < _SILENT_S else "starting"

    async def _listen(self, group: str, handle: Any) -> None:
        from ray.serve.exceptions import DeploymentUnavailableError

        while True:
            if self._rests(group):  # a question would make Serve start a replica
                self._heard[group] = time.monotonic()
                await asyncio.sleep(_PERIOD_S)
                continue
            try:
                self._answers[group] = await handle.describe.remote()
                self._heard[group] = time.monotonic()
                self._failed.pop(group, None)
                self._described.add(group)
            except DeploymentUnavailableError:
                self._failed[group] = "its replicas could not be started; see the log of the endpoint"
            except Exception as error:  # whatever a dying replica raises: it is asked again
                logging.getLogger("ray.serve").info("group %s did not answer: %s", group, type(error).__name__)
            await asyncio.sleep(_PERIOD_S)

    def _rests(self, group: str) -> bool:
        """Whether a group is scaled to zero, or may be and has described the replicas that it has now."""
        if self._bounds[group][0] > 0:
            return False
        if not self._running.get(group):
            self._described.discard(group)
            return True
        return group in self._described

    async def _count(self, count: CountReplicas) -> None:
        while True:
            try:
                self._running = await count()
            except Exception as error:  # the controller may be restarting: the last numbers stay
                logging.getLogger("ray.serve").info("replicas were not counted: %s", type(error).__name__)
            await asyncio.sleep(_PERIOD_S)
