"""A run's peak memory is its own: what its process held before is not counted."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.training.memory_stats import peak_bytes, restart_peak
from tests.running import Train

MIB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's peak")


def test_the_peak_is_counted_from_its_start() -> None:
    cpu = torch.device("cpu")
    held = np.ones(600 * MIB, np.uint8)
    high = peak_bytes(cpu)
    assert peak_bytes(cpu) >= held.nbytes
    del held
    restart_peak(cpu)
    assert peak_bytes(cpu) < high - 500 * MIB
    held = np.ones(200 * MIB, np.uint8)
    assert peak_bytes(cpu) >= held.nbytes


def test_a_run_does_not_inherit_the_peak_of_the_one_before(train: Train, recipe: Recipe) -> None:
    held = np.ones(2048 * MIB, np.uint8)
    before = peak_bytes(torch.device("cpu"))
    del held
    peaks = [row["peak_bytes"] for row in train(recipe).of("step")]
    assert peaks == sorted(peaks)
    assert 100 * MIB < peaks[-1] < before - 1024 * MIB
