"""More steps for a run that has ended, and a new run that starts from an artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import Artifact, write_manifest
from sdxl_ray.models.base_model import locate
from sdxl_ray.models.initial_weights import require_initial
from sdxl_ray.training.extension import extend, find_extensible
from sdxl_ray.training.run_directory import open_run, scan_images
from tests.running import Outcome, Train


def started_from(artifact: Artifact) -> dict[str, object]:
    return {"tuning.init": str(artifact.folder), "optim.steps": 1, "optim.lr": 1e-12, "optim.weight_decay": 0.0}


def of(run: Outcome) -> Artifact:
    return Artifact.open(run.folder / "artifact")


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_an_extended_run_is_the_run_with_more_steps(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    recipe = override(recipe, {"optim.steps": 2, "checkpoint.every": 100})
    open_run(recipe, tmp_path, "short", scan_images(recipe))
    short = train(recipe, "short")
    longer = override(recipe, {"optim.steps": 5})
    assert find_extensible(longer, tmp_path) == "short"
    run = open_run(recipe, tmp_path, "short", scan_images(recipe))
    run.finish(short.summary)
    extend(longer, run)
    assert run.summary() is None  # it has not ended any more
    open_run(longer, tmp_path, "short", scan_images(longer))
    extended, whole = train(longer, "short"), train(longer, "whole")
    assert extended.of("resume")[0]["step"] == 2
    assert list(extended.losses) == [3, 4, 5]
    assert [short.losses | extended.losses] == [whole.losses]  # to the last bit
    assert all(torch.equal(weight, whole.weights[name]) for name, weight in extended.weights.items())
    assert of(extended).manifest.step == 5


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ({}, {"optim.steps": 3}, "is below"),
        ({"optim.lr_scheduler": "cosine"}, {"optim.steps": 9}, "lr_scheduler=cosine spreads"),
        ({"optim.lr_scheduler": "linear"}, {"optim.steps": 9}, "tuning.init="),
    ],
)
def test_what_cannot_be_extended_is_said(
    recipe: Recipe, tmp_path: Path, before: dict[str, object], after: dict[str, object], line: str
) -> None:
    recipe = override(recipe, before)
    run = open_run(recipe, tmp_path, "run", scan_images(recipe))
    made = (run.folder / "run.json").read_bytes()
    with pytest.raises(UserError, match=line):
        extend(override(recipe, after), run)
    assert (run.folder / "run.json").read_bytes() == made


def test_a_run_that_stopped_early_is_not_extended(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    recipe = override(recipe, {"optim.steps": 1})
    run = open_run(recipe, tmp_path, "run", scan_images(recipe))
    run.finish({**train(recipe, "run").summary, "stopped_early": True})
    with pytest.raises(UserError, match=r"evaluation\.patience"):
        extend(override(recipe, {"optim.steps": 9}), run)


def test_another_recipe_is_no_run_to_extend(recipe: Recipe, tmp_path: Path) -> None:
    open_run(recipe, tmp_path, "run", scan_images(recipe))
    with pytest.raises(UserError, match="no run in"):
        find_extensible(override(recipe, {"optim.steps": 9, "seed": 5}), tmp_path)


def _losses(outcome: Outcome) -> list[float]:
    """Validation losses, that before the first step included."""
    return [row["loss"] for row in outcome.of("validation")]


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning.text_encoders": [1, 2], "tuning.alpha": 8.0},
        {"tuning.use_dora": True},
        {"tuning": {"kind": "full", "text_encoders": [1]}},
    ],
    ids=["lora", "dora", "full"],
)
def test_a_run_starts_from_an_artifact(train: Train, recipe: Recipe, changes: dict[str, object]) -> None:
    recipe = override(recipe, {**changes, "optim.steps": 2})
    first = train(recipe, "first")
    second = override(recipe, started_from(of(first)))
    require_initial(second, locate(Base()))
    continued = train(second, "second")
    assert close(continued.weights, first.weights)
    before, after = (_losses(outcome) for outcome in (continued, first))
    assert before[0] == pytest.approx(after[-1], rel=1e-5)
    assert abs(before[0] - after[0]) > 1e-5 * after[0]
    fresh = train(override(second, {"tuning.init": None}), "fresh")
    assert not close(fresh.weights, first.weights)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tuning.rank": 8}, r"tuning\.rank=4, this recipe has 8: set it to 4"),
        ({"tuning.alpha": 1.0}, r"tuning\.alpha=4"),
        ({"tuning.target_modules": ["to_q"]}, r"adapters on 'to_k': add it to tuning\.target_modules"),
        ({"tuning.text_encoders": []}, r"text encoder 1 too: set tuning\.text_encoders=\[1\]"),
        ({"tuning": {"kind": "full", "text_encoders": [1]}}, r"is a LoRA: set tuning\.kind=lora"),
    ],
)
def test_an_artifact_that_does_not_fit_is_refused_with_the_fix(
    recipe: Recipe, tmp_path: Path, changes: dict[str, object], line: str
) -> None:
    recipe = override(recipe, {"tuning.text_encoders": [1]})
    (tmp_path / "lora").mkdir()
    made_on = {"base_id": "tiny", "base_revision": locate(Base()).revision, "step": 4, "recipe_identity": "x"}
    write_manifest(tmp_path / "lora", kind="lora", recipe=recipe.model_dump(mode="json"), **made_on)  # type: ignore[arg-type]
    wanted = override(override(recipe, changes), {"tuning.init": str(tmp_path / "lora")})
    with pytest.raises(UserError, match=line):
        require_initial(wanted, locate(Base()))
