"""What a client is told at a path that is not there: which part of OpenAI's API is offered, and the nearest path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from serve.http.errors import ApiError

_OFFERED = "this endpoint generates images from text: POST /v1/images/generations"
#: Parts of OpenAI's API, as their paths begin.
_OF_OPENAI = {
    "/v1/images/edits": "images.edit",
    "/v1/images/variations": "images.create_variation",
    **{
        f"/v1/{name}": name
        for name in ("assistants", "audio", "batches", "chat", "completions", "conversations", "embeddings", "files")
    },
    **{f"/v1/{name}": name for name in ("fine_tuning", "moderations", "realtime", "responses", "uploads", "videos")},
}


def no_such_path(method: str, path: str, known: Iterable[str]) -> ApiError:
    """404. known: the paths that are there."""
    for start, name in _OF_OPENAI.items():
        if path == start or path.startswith(f"{start}/"):
            return ApiError(404, f"{method} {path[:100]}: {name} is not offered; {_OFFERED}", "not_offered")
    near = difflib.get_close_matches(path[:200], [*known], n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else _OFFERED
    return ApiError(404, f"{method} {path[:100]}: no such path; {hint}", "not_found")
