"""What we write, loaded by diffusers 0.35, PEFT 0.17 and transformers 4.57, in a process of their own.

`make interop` installs them into a folder and names it in INTEROP_LIBRARIES. The answers of the installed libraries are
the expected ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdxl_ray.config.schema import Base
from sdxl_ray.formats.diffusers_lora import diffusers_tensors
from sdxl_ray.formats.single_file import write_single_file
from sdxl_ray.models.base_model import load_components, locate
from sdxl_ray.models.pipeline import load_pipeline
from tests.formats.load_matrix import ADAPTERS
from tests.formats.test_load_matrix import expected, weights

pytestmark = pytest.mark.interop

ROOT = Path(__file__).parents[2]


def under(libraries: str | None, *words: str) -> dict[str, list[float]]:
    """What a source gives under libraries in a folder, or under the installed ones."""
    path = os.pathsep.join(filter(None, (libraries, str(ROOT))))
    done = subprocess.run(
        [sys.executable, "-m", "tests.interop.old_libraries", *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def old() -> str:
    folder = os.environ.get("INTEROP_LIBRARIES")
    assert folder, "run `make interop`, which installs the older libraries"
    return folder


def same(one: dict[str, list[float]], other: dict[str, list[float]]) -> bool:
    return one.keys() == other.keys() and all(other[key] == pytest.approx(one[key], abs=1e-5) for key in one)


def test_the_embedded_base_is_the_same_model(old: str, embedded: Path) -> None:
    assert same(under(None, "model", str(embedded)), under(old, "model", str(embedded)))


def test_a_full_artifact_is_the_same_model(old: str, tmp_path: Path) -> None:
    """As a full run exports it: saved by the newest libraries, with a UNet of its own."""
    base = Base(id="tiny")
    components = load_components(locate(base), base, dtype=torch.float32, device="cpu")
    for parameter in components.unet.mid_block.parameters():
        parameter.data.mul_(1.1)
    components.save(tmp_path / "model", [components.unet, *components.text_encoders], torch.float16)
    assert same(under(None, "model", str(tmp_path / "model")), under(old, "model", str(tmp_path / "model")))


def test_a_single_file_is_the_same_model(old: str, embedded: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    write_single_file(embedded, file, metadata={})
    words = ("single", str(file), str(embedded))
    assert same(under(None, "model", str(embedded)), under(old, *words))


@pytest.mark.parametrize("what", ADAPTERS)
def test_a_lora_gives_the_weights_that_it_means(what: str, old: str, embedded: Path, tmp_path: Path) -> None:
    adapter, file = ADAPTERS[what](), tmp_path / "x.safetensors"
    tensors, metadata = diffusers_tensors(adapter)
    save_file(tensors, file, metadata)
    before: Any = weights(load_pipeline(Base(id="tiny"), None, dtype=torch.float32, device="cpu"), list(adapter.layers))
    names = {f"{layer.part}:{layer.module}": layer for layer in adapter.layers}
    found = under(old, "lora", str(embedded), str(file), *names)
    for name, layer in names.items():
        wanted = expected(before[layer], adapter.low_rank[layer]).flatten()[:200].tolist()
        assert found[name] == pytest.approx(wanted, abs=1e-5), name
