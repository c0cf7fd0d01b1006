"""One run, however it is cut: workers, accumulation and ZeRO stages change where it is computed, not what."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.io.records import read
from sdxl_ray.training.local import run_local
from sdxl_ray.training.run_directory import RunFolder, open_run, scan_images
from tests.distributed.conftest import examples, final_state, losses
from tests.distributed.cuts import CUTS, MORE, Cut, trained

pytestmark = [pytest.mark.slow, pytest.mark.shares("cuts"), pytest.mark.chaos]


@pytest.fixture(scope="module")
def more(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cut]:
    return trained(MORE, tmp_path_factory.mktemp("more"))


def _alone(recipe: Recipe, storage: Path, drawn: Path) -> RunFolder:
    """One process, with the class images that the workers drew: another process may round a pixel differently."""
    one = recipe.model_copy(
        update={"parallel": recipe.parallel.model_copy(update={"engine": "local", "workers": (1, 1)})}
    )
    run = open_run(one, storage, "alone", scan_images(one))
    if one.data.prior is not None:
        shutil.copytree(drawn / "class", run.cache / "class")
    run_local(one, run, lambda row: None)
    return run


def _same_as_one_process(cut: Cut, storage: Path) -> None:
    recipe, run = cut.recipe, cut.run
    whole = recipe.parallel.model_copy(update={"micro_batch": None, "offload_optimizer": False})
    alone = _alone(recipe.model_copy(update={"parallel": whole}), storage, run.cache)
    ours, theirs = (read(one.folder / "records", "steps")["loss"].to_pylist() for one in (alone, run))
    assert len(theirs) == recipe.optim.steps
    assert theirs == pytest.approx(ours, rel=1e-4)
    assert examples(run.folder) == examples(alone.folder)
    here, there = (read(one.folder / "records", "validation")["loss"].to_pylist() for one in (alone, run))
    assert there == pytest.approx(here, rel=1e-3)
    assert final_state(run.folder).keys() == final_state(alone.folder).keys()


def _agree(cuts: dict[str, Cut], names: list[str]) -> None:
    first, *others = ([float.fromhex(x) for x in losses(cuts[name].run.folder)] for name in names)
    for name, other in zip(names[1:], others, strict=True):
        assert other == pytest.approx(first[: len(other)], rel=1e-4), name


@pytest.mark.parametrize("name", CUTS)
def test_two_workers_compute_what_one_process_does(name: str, cuts: dict[str, Cut], tmp_path: Path) -> None:
    _same_as_one_process(cuts[name], tmp_path)


def test_zero_stages_agree_with_each_other(cuts: dict[str, Cut]) -> None:
    _agree(cuts, [f"lora-zero{stage}" for stage in (0, 2, 3)])


def test_a_finished_run_says_how_long_it_was(cuts: dict[str, Cut]) -> None:
    summary = cuts["lora-zero2"].run.summary()
    assert summary is not None
    assert summary["steps"] == cuts["lora-zero2"].recipe.optim.steps


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MORE)
def test_more_cuts_compute_what_one_process_does(name: str, more: dict[str, Cut], tmp_path: Path) -> None:
    _same_as_one_process(more[name], tmp_path)


@pytest.mark.exhaustive
def test_zero_stages_of_a_whole_model_agree_with_each_other(more: dict[str, Cut]) -> None:
    _agree(more, [f"dreambooth-zero{stage}" for stage in (0, 1, 2, 3)])
