"""Recipes: every shipped file loads, bad input gets one line that names the fix, identity leaves out the layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sdxl_ray.config import Recipe, load, names, override, parse, parse_assignments
from sdxl_ray.core.quality.prompts import load_prompts
from sdxl_ray.errors import UserError
from sdxl_ray.experiment import load_experiment
from sdxl_ray.sections import FullTuning, LoraTuning
from sdxl_ray.space import load_space
from serve.config import load as load_served
from serve.loadtest.config import load_config
from serve.loadtest.config import names as load_test_names
from tests.cases import cases

ROOT = Path(__file__).parents[1]


def refused(changes: dict[str, Any], recipe: Recipe | None = None) -> str:
    """The one line that `changes` earn."""
    with pytest.raises(UserError) as caught:
        override(recipe or Recipe(), changes)
    line = str(caught.value)
    assert "\n" not in line
    assert "pydantic" not in line
    return line


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
    planted = {Path("tests/distributed/planted.yaml")}  # a space whose rates diverge
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


def test_a_key_that_stands_twice_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    for text in ("optim: {lr: 1, lr: 2}", "optim:\n  lr: 1\noptim:\n  lr: 2"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"is not YAML at line \d+: .*stands twice"):
            load(str(path))
    path.write_text("x: &x {lr: 1.0e-3}\noptim: {<<: *x, steps: 5}")
    with pytest.raises(UserError, match="no setting 'x'"):  # a merge is no second key
        load(str(path))


def test_a_recipe_is_frozen_and_override_makes_a_new_one() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.optim.lr = 1.0  # type: ignore[misc]  # what the test is about
    changed = override(recipe, {"optim.lr": 1e-3, "data.flip": True})
    assert (changed.optim.lr, changed.data.flip) == (1e-3, True)
    assert recipe.optim.lr == 1e-4


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"optim.lrr": 1}, "did you mean 'lr'?"),
        ({"optm.lr": 1}, "did you mean 'optim'?"),
        ({"tuning.rnk": 4}, "did you mean 'rank'?"),
        ({"tuning.rank": 0}, "tuning.rank = 0"),
        ({"optim.batch_size": 0}, "optim.batch_size = 0"),
        ({"optim.lr": -1e-4}, "optim.lr = -0.0001"),
        ({"optim.lr": float("nan")}, "optim.lr = nan"),
        ({"optim.lr": float("inf")}, "optim.lr = inf"),
        ({"optim.warmup_steps": 500}, "warmup_steps 500 must be below steps 500"),
        ({"optim.schedule": "piecewise_constant"}, "step_rules"),
        ({"optim.name": "adam"}, "'adamw'"),
        ({"data.caption_dropout": 1.5}, "data.caption_dropout = 1.5"),
        ({"parallel.workers": 0}, "parallel.workers"),
        ({"parallel.workers": [4, 2]}, "write [min, max]"),
        ({"parallel.workers": []}, "parallel.workers = []: should be a number of workers, or [min, max]"),
        ({"parallel.workers": [1, 2, 3]}, "parallel.workers = [1, 2, 3]: should be a number"),
        ({"parallel.zero_stage": 4}, "parallel.zero_stage = 4"),
        ({"parallel.zero_stage": 2, "parallel.offload_parameters": True}, "needs zero_stage 3"),
        ({"parallel.engine": "local", "parallel.workers": 2}, "workers 1"),
        ({"parallel.zero_stage": 0, "parallel.precision": "fp16"}, "fp16 needs zero_stage 1, 2 or 3, got 0"),
        ({"data.priro.count": 3}, "no setting 'data.priro.count': did you mean 'prior'?"),
        ({"optim.lr.x.y": 3}, "optim.lr is a value, not a section"),
        ({"objective.prediction": "epsilon", "objective.zero_terminal_snr": True}, "needs prediction v_prediction"),
        ({"seed": -1}, "seed = -1"),
        ({"tuning.kind": "lroa"}, "lora"),
        ({"tuning": {"kind": "full", "rank": 4}}, "rank"),
    ],
)
def test_bad_settings_get_one_line(changes: dict[str, Any], line: str) -> None:
    assert line in refused(changes)


@pytest.mark.parametrize("path", ["optim.lr.x", "seed.x", "data.images.x", "base.id.x", "optim.", ".lr", "", "a.b.c"])
def test_a_path_into_nothing_gets_one_line(path: str) -> None:
    refused({path: 1})


def test_a_section_given_whole_can_be_changed_on() -> None:
    changed = override(Recipe(), {"base": "folder/sdxl", "base.vae": "folder/vae"})
    assert (changed.base.id, changed.base.vae) == ("folder/sdxl", "folder/vae")


def test_another_kind_starts_from_its_own_defaults() -> None:
    full = override(load("lora"), {"tuning.kind": "full"})
    assert full.tuning == FullTuning()
    assert override(full, {"tuning.kind": "lora", "tuning.rank": 8}).tuning == LoraTuning(rank=8)


def test_a_section_that_is_off_can_be_switched_on_by_one_setting() -> None:
    prior = override(Recipe(), {"data.prior.count": 7}).data.prior
    assert prior is not None
    assert prior.count == 7
    assert override(load("dreambooth"), {"data.prior": None}).data.prior is None


def test_identity_is_what_is_computed_not_where() -> None:
    recipe = load("lora")
    same = {
        "parallel.workers": [1, 8],
        "parallel.zero_stage": 3,
        "checkpoint.every": 7,
        "resources.max_failures": 0,
    }
    assert override(recipe, same).identity == recipe.identity
    others = {"optim.lr": 2e-4, "seed": 1, "data.flip": True, "tuning.rank": 8, "base": "tiny"}
    for path, value in {**others, "parallel.precision": "fp16"}.items():
        assert override(recipe, {path: value}).identity != recipe.identity, path


def test_assignments_are_yaml_values() -> None:
    words = ["a=1e-4", "b=true", "c=null", "d=[1, 2]", "e=a photo of sks dog", "f=", "g=x=y", "h={k: 2}", "i=: {"]
    assert parse_assignments(words) == {
        "a": 1e-4,
        "b": True,
        "c": None,
        "d": [1, 2],
        "e": "a photo of sks dog",
        "f": None,
        "g": "x=y",
        "h": {"k": 2},
        "i": ": {",
    }
    for word in ("optim.lr", "=3", ""):
        with pytest.raises(UserError, match="path=value"):
            parse_assignments([word])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a photo of sks dog # outside", "a photo of sks dog # outside"),
        ("dog: a photo", "dog: a photo"),
        ("2024-13-45", "2024-13-45"),
        ("0x_", "0x_"),
        ("[0x_]", "[0x_]"),
        ('["a dog", b #c]', '["a dog", b #c]'),
        ('["1e-4", 1e-4, 1E3, "a # b"]', ["1e-4", 1e-4, 1e3, "a # b"]),
        ("'2024'", "2024"),
        ("2024", 2024),
    ],
)
def test_the_command_line_means_what_it_says(text: str, value: object) -> None:
    assert parse_assignments([f"data.prompt={text}"]) == {"data.prompt": value}


def test_text_of_a_file_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('data: {class_name: "2024", subject: 2024-13-45}\noptim: {lr: 1e-3, eps: 1E-7}\n')
    mine = load(str(path))
    assert (mine.data.class_name, mine.data.subject, mine.optim.lr, mine.optim.eps) == (
        "2024",
        "2024-13-45",
        1e-3,
        1e-7,
    )
    path.write_text("data: {class_name: 0x_}\n")
    with pytest.raises(UserError, match="is not YAML"):
        load(str(path))


def test_recipes_that_are_not_there_or_not_recipes(tmp_path: Path) -> None:
    cases = {
        "empty.yaml": ("", None),
        "list.yaml": ("- 1\n", "a list, not a mapping"),
        "broken.yaml": ("optim:\n  lr: [1\n", "line"),
        "typo.yaml": ("optim:\n  lrr: 1\n", "did you mean 'lr'?"),
        "section.yaml": ("optim: 3\n", "optim = 3"),
        "loop.yaml": ("extends: PATH/loop.yaml\n", "extends itself"),
        "parent.yaml": ("extends: lroa\n", "did you mean 'lora'?"),
        "binary.yaml": (b"\xff\xfe\x00", "cannot be read"),
    }
    for name, (text, line) in cases.items():
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.replace("PATH", str(tmp_path)).encode())
        if line is None:
            assert load(str(path)) == Recipe()
            continue
        with pytest.raises(UserError) as caught:
            load(str(path))
        assert line in str(caught.value), name
        assert "\n" not in str(caught.value), name
    with pytest.raises(UserError, match="did you mean 'lora'"):
        load("lor")
    with pytest.raises(UserError, match=r"none\.yaml"):
        load(str(tmp_path / "none.yaml"))


def test_extends_merges_below_the_child(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: lora\ntuning: {rank: 4}\noptim: {lr: 1e-3}\n")
    mine = load(str(tmp_path / "mine.yaml"))
    assert mine == override(load("lora"), {"tuning.rank": 4, "optim.lr": 1e-3})


def test_extends_is_read_from_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "below.yaml").write_text("extends: ../lowest.yaml\nseed: 7\n")
    (tmp_path / "lowest.yaml").write_text("extends: lora\ntuning: {rank: 4}\n")
    (tmp_path / "mine.yaml").write_text("extends: deep/below.yaml\n")
    assert load(str(tmp_path / "mine.yaml")) == override(load("lora"), {"tuning.rank": 4, "seed": 7})
    (tmp_path / "lowest.yaml").write_text("extends: mine.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load(str(tmp_path / "mine.yaml"))


def test_a_name_of_the_users_own_is_shown_though_it_is_a_kind_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("arms: {lora: {recpe: lora}}\n")
    with pytest.raises(UserError, match=r"no setting 'arms\.lora\.recpe': did you mean 'recipe'"):
        load_experiment(str(path))
    assert refused({"tuning": {"kind": "lora", "rnk": 4}}) == "recipe: no setting 'tuning.rnk': did you mean 'rank'?"


def test_no_secret_of_a_tracker_is_kept_or_shown() -> None:
    line = refused({"resources.mlflow": {"tracking_uri": "https://ada:secret@flow.example.com/x"}})
    assert "secret" not in line
    assert "MLFLOW_TRACKING_PASSWORD" in line
    for uri in ("https://flow.example.com/a@b", "file:/tmp/x", "databricks"):
        override(Recipe(), {"resources.mlflow": {"tracking_uri": uri}})


def test_what_a_run_needs_is_asked_for_in_one_line() -> None:
    with pytest.raises(UserError, match=r"data\.images=photos/dog"):
        load("lora").require_complete()
    with_images = override(load("dreambooth"), {"data.images": "photos"})
    with pytest.raises(UserError, match=r"data\.class_name"):
        with_images.require_complete()
    override(with_images, {"data.class_name": "dog"}).require_complete()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATHS = [
    f"{section}.{field}"
    for section in Recipe.model_fields
    if section not in ("seed", "tuning")
    for field in Recipe.model_fields[section].annotation.model_fields  # type: ignore[union-attr]  # sections all
] + ["tuning.rank", "tuning.targets", "tuning.kind", "tuning", "seed", *Recipe.model_fields]


@settings(max_examples=cases(300), deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS) | st.text(max_size=12), JSON, min_size=1, max_size=3))
def test_any_change_is_a_recipe_or_one_line(changes: dict[str, Any]) -> None:
    try:
        override(Recipe(), changes)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("resources.wandb", {"project": "p"}),
        ("resources.mlflow", {"tracking_uri": "file:x"}),
        ("data.stream", "always"),
    ],
)
def test_what_needs_ray_is_refused_where_there_is_none(setting: str, value: object) -> None:
    assert setting in refused({"parallel.engine": "local", setting: value})


def test_settings_that_an_optimizer_has_not_are_refused() -> None:
    assert "adafactor has no betas" in refused({"optim.name": "adafactor", "optim.betas": [0.8, 0.9]})
