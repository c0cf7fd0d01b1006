"""Every YAML file of the tree loads; the shipped recipes are the three arms, on the real base and the embedded one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sdxl_ray.config.experiment import load_experiment
from sdxl_ray.config.recipe import load, names, parse
from sdxl_ray.config.schema import FullTuning, LoraTuning
from sdxl_ray.config.search_space import load_space
from sdxl_ray.evaluation.prompts import load_prompts
from serve.config import load as load_served
from serve.loadtest.config import load_config
from serve.loadtest.config import names as load_test_names

ROOT = Path(__file__).parents[2]


def test_every_yaml_in_the_tree_loads_and_none_is_forgotten() -> None:
    """Each folder of YAML files has its loader here; a file elsewhere fails the count."""
    found = {
        path.relative_to(ROOT)
        for suffix in ("*.yaml", "*.yml")
        for path in ROOT.rglob(suffix)
        if not any(part.startswith(".") or part in ("build", "dist", "runs") for part in path.relative_to(ROOT).parts)
    }
    recipes = {path for path in found if path.parent == Path("sdxl_ray/recipes")}
    assert {path.stem for path in recipes} == set(names())
    for path in recipes:
        assert load(path.stem) == load(str(ROOT / path)), path
    assert len(recipes) == 6
    experiments = {path for path in found if path.parent == Path("sdxl_ray/recipes/experiments")}
    for path in experiments:
        assert load_experiment(path.stem) == load_experiment(str(ROOT / path)), path
        assert load_experiment(path.stem).runs({}), path
    assert len(experiments) == 4
    bench = {path for path in found if path.parent == Path("tests/bench")}
    for path in bench:
        assert load_experiment(str(ROOT / path)).runs({}), path
    assert len(bench) == 1
    prompts = {path for path in found if path.parent == Path("sdxl_ray/recipes/prompts")}
    for path in prompts:
        assert load_prompts(path.stem) == load_prompts(str(ROOT / path)), path
    assert len(prompts) == 3
    spaces = {path for path in found if path.parent == Path("tune_spaces")}
    for path in spaces:
        assert load_space(path.stem) == load_space(str(ROOT / path)), path
    assert len(spaces) == 6
    planted = {Path("tests/search/planted.yaml")}  # a space whose rates diverge
    assert all(load_space(str(ROOT / path)) for path in planted)
    load_tests = {path for path in found if path.parent == Path("serve/loadtest")}
    assert {path.stem for path in load_tests} == set(load_test_names())
    for path in load_tests:
        assert load_config(path.stem, {}) == load_config(str(ROOT / path), {}), path
    assert len(load_tests) == 2
    served = {path for path in found if path.parent == Path("serve")}
    for path in served:
        assert load_served(path.stem) == load_served(str(ROOT / path)), path
    assert len(served) == 1
    clusters = {path for path in found if path.parent == Path("cluster")}
    assert len(clusters) == 9  # each is loaded by tests/cluster/test_manifests.py and its neighbours
    assert found == recipes | experiments | bench | prompts | spaces | planted | load_tests | served | clusters


@pytest.mark.parametrize("name", names())
def test_a_shipped_recipe_survives_a_trip_through_plain_data(name: str) -> None:
    recipe = load(name)
    assert parse(recipe.model_dump(mode="json")) == recipe
    assert parse(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe
    text = (ROOT / "sdxl_ray" / "recipes" / f"{name}.yaml").read_text()
    assert text.startswith("# ")


def test_the_recipes_are_the_three_arms() -> None:
    lora, dreambooth, both = (load(name) for name in ("lora", "dreambooth", "dreambooth_lora"))
    assert isinstance(lora.tuning, LoraTuning)
    assert lora.data.prior is None
    assert isinstance(dreambooth.tuning, FullTuning)
    assert dreambooth.data.prior is not None
    assert isinstance(both.tuning, LoraTuning)
    assert both.data.prior is not None
    for name in ("lora", "dreambooth", "dreambooth_lora"):
        base = load(name).base
        assert base.revision is not None
        assert len(base.revision) == 40
        tiny = load(f"tiny_{name}")
        assert (tiny.base.id, tiny.base.revision) == ("tiny", None)
        assert type(tiny.tuning) is type(load(name).tuning)
        assert (tiny.data.prior is None) == (load(name).data.prior is None)
