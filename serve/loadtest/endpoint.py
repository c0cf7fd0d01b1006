"""The endpoint before a load test: whether it answers, and which models it has."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from itertools import combinations

from sdxl_ray.errors import UserError, nearest
from serve.loadtest.config import LoadArm, LoadTest

_TIMEOUT_S = 10.0
#: Our own endpoint lists what could not start too.
_READY = "ready"


def api_key(settings: LoadTest) -> str | None:
    """The key that the environment holds. Raises UserError when the named variable is not set."""
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise UserError(f"api_key_env: the environment has no {settings.api_key_env}: export it, or leave it out")
    return key


def models(settings: LoadTest) -> dict[str, str | None]:
    """Names of `GET /v1/models`, of those that can draw, with their set of weights where the endpoint tells.

    Raises UserError, one line, when nobody answers as an OpenAI endpoint does.
    """
    url = f"{settings.url}/v1/models"
    key = api_key(settings)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    # A proxy of the environment is not between a load test and its endpoint.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            listed = json.load(answer)["data"]
            ready = [model for model in listed if model.get("state", _READY) == _READY]
            return {str(model["id"]): model.get("group") for model in ready}
    except urllib.error.HTTPError as error:
        hint = "; set api_key_env to the variable that holds a key" if error.code == 401 else ""
        raise UserError(f"url {settings.url!r}: {url} answers {error.code}{hint}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"url {settings.url!r} does not answer: {reason}; start it with sdxl-ray serve") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"url {settings.url!r}: {url} is not an OpenAI-compatible list of models") from None


def arms_of(settings: LoadTest, known: Iterable[str]) -> Mapping[str, LoadArm]:
    """The arms, every model of the endpoint where none are named. Raises UserError for a model that it has not."""
    known = list(known)
    if not settings.arms:
        if not known:
            raise UserError(f"url {settings.url!r} has no models: give it some, or name arms")
        return {name: LoadArm(model=(name,)) for name in known}
    for name, arm in settings.arms.items():
        for model in (*arm.model, *(adapter.name for adapter in arm.adapters)):
            if model not in known:
                raise UserError(
                    f"arm {name!r}: the endpoint has no model {model!r} that is ready: {nearest(model, known)}"
                )
    return settings.arms


def deployment_of(settings: LoadTest, known: Mapping[str, str | None]) -> str:
    """Whether the arms have replicas of their own: "isolated", "shared" (by all of them) or "partly shared".

    By the sets of weights that the endpoint tells; where it does not, what the settings say of it is believed. Raises
    UserError for arms that are to be isolated and share replicas.
    """
    groups = {name: {known.get(model) for model in arm.model} for name, arm in settings.arms.items()}
    if any(None in found for found in groups.values()):
        return settings.deployment
    pairs = list(combinations(groups, 2))
    together = [(one, other) for one, other in pairs if groups[one] & groups[other]]
    if together and settings.deployment == "isolated":
        one, other = together[0]
        raise UserError(
            f"deployment = isolated, but arms {one!r} and {other!r} share replicas at {settings.url}: set own_replicas "
            "for one of their models there, or deployment=shared"
        )
    return "isolated" if not together else "shared" if len(together) == len(pairs) else "partly shared"
