"""API keys: read from the environment or a file, kept as digests, compared in constant time, never logged."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from sdxl_ray.config.text_files import read_text
from sdxl_ray.errors import UserError
from serve.config import ApiKeys
from serve.http.errors import ApiError

_SHORTEST = 16


class Keys:
    """The keys of an endpoint; none means that it is open."""

    def __init__(self, keys: list[str]) -> None:
        # Digests are of equal length, so comparing them tells nothing about the length of a key.
        self._digests = [_digest(key) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def allows(self, authorization: str | None) -> bool:
        """Whether an `Authorization: Bearer KEY` header holds a valid key, or the endpoint needs none."""
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # Every key is compared, whichever matches.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)

    def require(self, authorization: str | None) -> None:
        """Check an `Authorization: Bearer KEY` header. Raises ApiError 401."""
        if not self.allows(authorization):
            raise ApiError(401, "no valid API key: send the header Authorization: Bearer KEY", "invalid_api_key")


def read_keys(where: ApiKeys) -> Keys:
    """Read the keys. Raises UserError, as `key_texts` does."""
    return Keys(key_texts(where))


def key_texts(where: ApiKeys) -> list[str]:
    """The keys themselves, for a client on this machine.

    Raises UserError: the file cannot be read or holds no key, or a key is too short.
    """
    keys = [key.strip() for key in os.environ.get(where.variable, "").split(",")]
    if where.file is not None:
        lines = read_text(Path(where.file), f"api_keys.file = {where.file!r}").splitlines()
        found = [line.partition("#")[0].strip() for line in lines]
        if not any(found):
            raise UserError(f"api_keys.file = {where.file!r} holds no key: write one on a line")
        keys += found
    keys = [key for key in keys if key]
    if any(len(key) < _SHORTEST for key in keys):
        raise UserError(f"an API key is shorter than {_SHORTEST} characters: use openssl rand -hex 32")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
