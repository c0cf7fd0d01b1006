"""The deployment that speaks HTTP. It holds no weights and computes little; several of them may run."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp

from sdxl_ray.errors import UserError
from serve.config import parse
from serve.http import routes
from serve.http.auth import read_keys
from serve.http.endpoint import Endpoint
from serve.replica.counts import of_this_application
from serve.replica.placement import Placement


class Ingress:
    """Made on its replica from plain data and the handles of the groups; Serve asks it for the application."""

    async def __init__(  # type: ignore[misc]
        self, config: dict[str, Any], layout: dict[str, Any], handles: dict[str, Any], images: Any, *, locked: bool
    ) -> None:
        """images: handle of the store of images, or None.

        locked: there were keys where the endpoint was built. Where this process finds none, it opens nothing.
        """
        settings = parse(config)
        keys = read_keys(settings.api_keys)
        if locked and not len(keys):
            raise UserError(f"no API keys on this node: set {settings.api_keys.variable} or api_keys.file here too")
        self.endpoint = Endpoint(settings, Placement.of(layout), handles, keys, images, of_this_application())

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return routes.build(self.endpoint)

    async def __del__(self) -> None:
        """Serve awaits this when a replica goes."""
        endpoint = getattr(self, "endpoint", None)
        if endpoint is not None:
            endpoint.health.stop()
