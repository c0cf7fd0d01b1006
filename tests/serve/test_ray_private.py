"""Ray Serve's private API is used with versions of Ray with which it was checked."""

from __future__ import annotations

import ray

from serve import _ray_private


def test_the_private_api_of_this_version_of_ray_was_checked() -> None:
    assert ray.__version__.rpartition(".")[0] in _ray_private.CHECKED, "check serve/_ray_private.py with this Ray"
