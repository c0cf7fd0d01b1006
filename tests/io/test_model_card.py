"""Every artifact has a model card whose code runs, and what stands beside an artifact is no part of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import BESIDE, Artifact
from sdxl_ray.io.model_card import card, snippet
from tests.running import Train

PINNED = {"base": {"id": "stabilityai/stable-diffusion-xl-base-1.0", "revision": "0" * 40}}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_cards_own_code_draws(train: Train, recipe: Recipe, kind: str) -> None:
    tuned = {"tuning": {"kind": kind}, "optim.steps": 1, "evaluation.every": 1}
    artifact = Artifact.open(train(override(recipe, tuned)).folder / "artifact")
    text = (artifact.folder / "README.md").read_text()
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["license"] == "apache-2.0"
    assert matter["instance_prompt"] == "a photo of sks dog"
    assert "`sks dog`" in text
    assert "(samples.png)" in text and (artifact.folder / "samples.png").is_file()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    few = code.replace("manual_seed(0))", "manual_seed(0), num_inference_steps=1, height=32, width=32)")
    assert few != code
    subprocess.run([sys.executable, "-c", few], cwd=artifact.folder, check=True, capture_output=True, timeout=300)
    (artifact.folder / "image.png").unlink()  # what the snippet saved would be an extra file
    assert Artifact.open(artifact.folder).hash == artifact.hash


def test_the_front_matter_names_a_base_of_the_hub(train: Train, recipe: Recipe) -> None:
    manifest = Artifact.open(train(override(recipe, {"optim.steps": 1})).folder / "artifact").manifest
    of_hub = override(recipe, PINNED)
    text = card(manifest, of_hub, {"dino_i": (0.5, 0.4, 0.6), "quality": (0.25, None, None)})
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert matter["base_model_relation"] == "adapter"
    assert matter["license"] == "openrail++"
    assert "| dino_i | 0.500 [0.400, 0.600] |" in text
    assert "| quality | 0.250 |" in text
    assert f'revision="{"0" * 40}"' in snippet(of_hub)


def test_a_card_names_no_folder_of_this_machine(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    manifest = Artifact.open(train(override(recipe, {"optim.steps": 1})).folder / "artifact").manifest
    base = tmp_path / "my-sdxl"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n# mine")
    text = card(manifest, override(recipe, {"base": str(base)}), {})
    assert yaml.safe_load(text.split("---")[1])["license"] == "mit"
    assert "my-sdxl" in text
    assert str(tmp_path) not in text


def test_what_stands_beside_changes_nothing(train: Train, recipe: Recipe) -> None:
    folder = train(override(recipe, {"optim.steps": 1})).folder / "artifact"
    before = Artifact.open(folder).hash
    for name in (*BESIDE, ".DS_Store", "._weights", "Thumbs.db", ".git/config", ".cache/huggingface/x.lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("anything")
    assert Artifact.open(folder).hash == before
    (folder / "README.md").unlink()
    assert Artifact.open(folder).hash == before
    (folder / "other.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"other\.safetensors is not in its manifest"):
        Artifact.open(folder)
