"""Random adapters, and the plain pipeline that images are compared with."""

from __future__ import annotations

import pytest

from sdxl_ray.io.artifact import Artifact
from tests.serve.engine.plain import KINDS, Plain, make_lora


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """One adapter of each kind."""
    folder = tmp_path_factory.mktemp("loras")
    return {kind: make_lora(folder / kind, kind, seed) for seed, kind in enumerate(KINDS)}


@pytest.fixture(scope="session")
def plain(loras: dict[str, Artifact]) -> Plain:
    """The reference."""
    return Plain(loras)
