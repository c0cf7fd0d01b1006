"""A run's peak memory is its own: what its process held before is not counted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.models.base_model import own_memory
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


def test_pages_of_a_mapped_file_are_not_counted(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    file = tmp_path / "weights"
    file.write_bytes(bytes(300 * MIB))
    restart_peak(cpu)
    before = peak_bytes(cpu)
    mapped = np.memmap(file, np.uint8)
    assert int(mapped[:: os.sysconf("SC_PAGE_SIZE")].sum()) == 0
    assert peak_bytes(cpu) < before + 50 * MIB
    held = np.ones(200 * MIB, np.uint8)
    del held, mapped
    assert before + 150 * MIB < peak_bytes(cpu) < before + 300 * MIB


def test_weights_of_their_own_leave_no_holes() -> None:
    """Weights of growing sizes with something small between them: no copy fits where one was before."""
    torch.empty(4 * MIB).zero_()  # freed at once: glibc puts what is smaller on its heap from now on
    kept, weights = [], []
    for number in range(200):
        weights.append(torch.nn.Parameter(torch.ones(MIB // 4 + number * 2**12)))
        kept.append(torch.ones(2**10))
    size = sum(weight.nbytes for weight in weights)
    process = psutil.Process()
    before = process.memory_info().rss
    own_memory(torch.nn.ParameterList(weights))
    assert process.memory_info().rss < before + size // 4


def test_a_run_does_not_inherit_the_peak_of_the_one_before(train: Train, recipe: Recipe) -> None:
    held = np.ones(2048 * MIB, np.uint8)
    before = peak_bytes(torch.device("cpu"))
    del held
    peaks = [row["peak_bytes"] for row in train(recipe).of("step")]
    assert peaks == sorted(peaks)
    assert 100 * MIB < peaks[-1] < before - 1024 * MIB
