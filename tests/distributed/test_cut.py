"""One run, however it is cut: workers, accumulation and ZeRO stages change where it is computed, not what."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.distributed.ray_checkpoint import CheckpointPointer, resolve
from sdxl_ray.errors import UserError
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
    _agree(cuts, ["lora-data-parallel", "lora-zero2", "lora-zero3"])


def test_a_finished_run_says_how_long_it_was(cuts: dict[str, Cut]) -> None:
    summary = cuts["lora-zero2"].run.summary()
    assert summary is not None
    assert summary["steps"] == cuts["lora-zero2"].recipe.optim.steps


def test_ray_train_sees_every_checkpoint_and_ours_is_found_from_it(cuts: dict[str, Cut], tmp_path: Path) -> None:
    from ray.train import Result

    result = Result.from_path(str(cuts["lora-zero2"].run.folder.parents[1] / "ray" / "cuts"))
    known = result.best_checkpoints or []
    seen: dict[str, list[int]] = {}
    for checkpoint, metrics in known:
        pointer = CheckpointPointer.read(checkpoint.filesystem, checkpoint.path)
        assert pointer.step == metrics["checkpoint_step"]
        seen.setdefault(pointer.run, []).append(pointer.step)
    saved = {name: _saved(cut) for name, cut in cuts.items()}
    assert seen == {name: steps for name, steps in saved.items() if steps}

    last = list(cuts)[-1]
    assert result.checkpoint is not None
    newest = cuts[last].run.folder / "checkpoints" / f"step-{saved[last][-1]:07d}"
    assert resolve(result.checkpoint) == newest
    scored = cuts["scored"]
    best = result.get_best_checkpoint("quality", "max")
    assert best is not None and resolve(best).is_relative_to(scored.run.folder)
    with pytest.raises(UserError, match="gone or damaged"):  # a run keeps two
        resolve(known[0][0])

    # The files that it leads to are those that a run resumes from, here in one process.
    recipe = cuts["lora-zero2"].recipe
    one = recipe.model_copy(
        update={"parallel": recipe.parallel.model_copy(update={"engine": "local", "workers": (1, 1)})}
    )
    again, rows = open_run(one, tmp_path, "again", scan_images(one)), list[dict[str, Any]]()
    found = resolve(next(c for c, m in known if "/lora-zero2/" in _where(c) and m["checkpoint_step"] == 10))
    shutil.copytree(found, again.folder / "checkpoints" / found.name)
    run_local(one, again, rows.append)
    assert [row["step"] for row in rows if row["kind"] == "resume"] == [10]
    assert not [row for row in rows if row["kind"] == "step"]
    assert final_state(again.folder).keys() == final_state(cuts["lora-zero2"].run.folder).keys()


def _saved(cut: Cut) -> list[int]:
    return [row["step"] for row in cut.rows if row["kind"] == "checkpoint"]


def _where(checkpoint: Any) -> str:
    return CheckpointPointer.read(checkpoint.filesystem, checkpoint.path).checkpoint


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MORE)
def test_more_cuts_compute_what_one_process_does(name: str, more: dict[str, Cut], tmp_path: Path) -> None:
    _same_as_one_process(more[name], tmp_path)


@pytest.mark.exhaustive
def test_zero_stages_of_a_whole_model_agree_with_each_other(more: dict[str, Cut]) -> None:
    _agree(more, [f"dreambooth-zero{stage}" for stage in (0, 1, 2, 3)])
