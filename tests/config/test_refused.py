"""Bad settings: one line that names the value and the fix, whatever is sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_ray.config.recipe import Recipe, load, override
from sdxl_ray.errors import UserError
from tests.cases import cases
from tests.config.refused import refused

pytestmark = pytest.mark.chaos


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
        ({"optim.lr_scheduler": "piecewise_constant"}, "step_rules"),
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


def test_the_kind_of_a_section_is_no_part_of_the_path_that_is_shown() -> None:
    assert refused({"tuning": {"kind": "lora", "rnk": 4}}) == "recipe: no setting 'tuning.rnk': did you mean 'rank'?"


@pytest.mark.parametrize("path", ["optim.lr.x", "seed.x", "data.images.x", "base.id.x", "optim.", ".lr", "", "a.b.c"])
def test_a_path_into_nothing_gets_one_line(path: str) -> None:
    refused({path: 1})


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
] + ["tuning.rank", "tuning.target_modules", "tuning.kind", "tuning", "seed", *Recipe.model_fields]


@settings(max_examples=cases(300), deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS) | st.text(max_size=12), JSON, min_size=1, max_size=3))
def test_any_change_is_a_recipe_or_one_line(changes: dict[str, Any]) -> None:
    try:
        override(Recipe(), changes)
    except UserError as error:
        assert "\n" not in str(error)
