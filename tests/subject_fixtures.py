"""A subject with photos, and an artifact in a run folder that tells what it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.io.artifact import Artifact
from tests.random_lora import random_run
from tests.running import draw_images


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos that nobody trained on."""
    return draw_images(tmp_path_factory.mktemp("data") / "toby" / "held_out", [(48, 48), (40, 56), (36, 36)], 2)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Artifact:
    """A random LoRA in the folder of a run that was trained on `photos`."""
    recipe = override(Recipe(), {"data.images": str(photos), "data.subject": "sks dog", "data.class_name": "dog"})
    return random_run(tmp_path_factory.mktemp("runs") / "toby-lora", recipe)
