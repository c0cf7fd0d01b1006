"""The endpoint before a load test: whether it answers, and which models it has."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping

from sdxl_ray.errors import UserError, nearest
from serve.loadtest.config import Arm, LoadTest

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


def models(settings: LoadTest) -> list[str]:
    """Names of `GET /v1/models`, of those that can draw.

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
            return [str(model["id"]) for model in listed if model.get("state", _READY) == _READY]
    except urllib.error.HTTPError as error:
        hint = "; set api_key_env to the variable that holds a key" if error.code == 401 else ""
        raise UserError(f"url {settings.url!r}: {url} answers {error.code}{hint}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"url {settings.url!r} does not answer: {reason}; start it with sdxl-ray serve") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"url {settings.url!r}: {url} is not an OpenAI-compatible list of models") from None


def arms_of(settings: LoadTest, known: Iterable[str]) -> Mapping[str, Arm]:
    """The arms, every model of the endpoint where none are named. Raises UserError for a model that it has not."""
    known = list(known)
    if not settings.arms:
        if not known:
            raise UserError(f"url {settings.url!r} has no models: give it some, or name arms")
        return {name: Arm(model=(name,)) for name in known}
    for name, arm in settings.arms.items():
        for model in (*arm.model, *(adapter.name for adapter in arm.adapters)):
            if model not in known:
                raise UserError(
                    f"arm {name!r}: the endpoint has no model {model!r} that is ready: {nearest(model, known)}"
                )
    return settings.arms
