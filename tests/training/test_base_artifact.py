"""A LoRA on top of a full model that another run, or a merge, left: from training to serving."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch

from sdxl_ray.config.base_lineage import of_embedded_base
from sdxl_ray.config.merging import Merging
from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import Base
from sdxl_ray.evaluation.defaults import settings_of
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.models.base_model import locate
from sdxl_ray.models.merge import merge
from sdxl_ray.models.merge_sources import open_merge, open_source
from sdxl_ray.tiny import shipped
from serve.engine.engine import ServingEngine
from serve.engine.request import AdapterUse, ImageRequest
from tests.conftest import Here
from tests.random_lora import random_artifact
from tests.serve.engine.plain import running, small


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full model of the embedded base, which differs in every part."""
    home = tmp_path_factory.mktemp("model")
    opened = open_merge([open_source(random_artifact(home / "lora", 1).folder)], Merging(into="model"))
    return merge(opened, home / "dog" / "artifact", dtype=torch.float32).artifact.folder


@pytest.mark.slow
def test_a_lora_on_a_full_model_trains_generates_evaluates_and_serves(
    model: Path, photos: Path, tmp_path: Path, here: Here
) -> None:
    quick = ("optim.steps=2", "optim.warmup_steps=0", "parallel.engine=local", "parallel.workers=1",
             "evaluation.every=0", "evaluation.num_inference_steps=1", "data.resolution=32",
             "evaluation.draws=1")  # fmt: skip
    words = (f"data.images={photos}", "data.subject=sks dog", "data.class_name=dog")
    code, out, err = here("train", "tiny_lora", f"base={model}", *words, *quick, "--name", "top")
    assert code == 0, err
    assert "takes" not in err  # no note that the embedded base's rate is not SDXL's
    artifact = Artifact.open(tmp_path / "runs" / "top" / "artifact")
    assert artifact.manifest.base.id == str(model)
    assert artifact.manifest.base.revision == locate(Base(id=str(model))).revision != shipped.revision()
    card = (artifact.folder / "README.md").read_text()
    assert "dog/artifact" in card
    assert "apache-2.0" in card

    code, out, err = here("generate", "runs/top/artifact", "a photo of sks dog", "--steps", "1", "--out", "drawn")
    assert code == 0, err
    (tmp_path / "one.txt").write_text("a photo of {a_subject}\n")
    code, out, err = here("evaluate", "base", "runs/top/artifact", "--seeds", "1", "--class-images", "2",
                          "--steps", "1", "--prompts", "one.txt", "--json")  # fmt: skip
    assert code == 0, err
    models = {row["model"] for row in json.loads(out)["scores"]}
    assert {"base", "top"} <= models

    async def serve() -> None:
        engine = ServingEngine(Base(id=str(model)), adapters={"top": artifact}, settings=small())
        async with running(engine):
            image = await engine.draw(ImageRequest("a dog", 1, num_inference_steps=1, adapters=(AdapterUse("top"),)))
        assert image is not None

    asyncio.run(serve())


def test_what_is_made_on_the_embedded_base_is_judged_as_it_is(model: Path, tmp_path: Path) -> None:
    recipe = override(Recipe(), {"base": str(model)})
    assert settings_of(recipe).identity == settings_of(Recipe()).identity == "tiny-identity"
    on_top = tmp_path / "on_top"
    on_top.mkdir()
    (on_top / "manifest.json").write_text(json.dumps({"base": {"id": str(model)}}))
    assert of_embedded_base(str(on_top))
    for text in ("", "{}", "[]", json.dumps({"base": {"id": "my/sdxl"}}), json.dumps({"base": {"id": str(on_top)}})):
        (on_top / "manifest.json").write_text(text)
        assert not of_embedded_base(str(on_top))


def test_runs_on_different_artifacts_have_names_of_their_own() -> None:
    one, two, moved = (
        override(Recipe(), {"base": f"/{where}/artifact"}) for where in ("runs/dog", "runs/cat", "mnt/runs/dog")
    )
    assert one.identity == moved.identity != two.identity
    folders = [override(Recipe(), {"base": f"/{where}/sdxl"}) for where in ("a", "b")]
    assert folders[0].identity == folders[1].identity
