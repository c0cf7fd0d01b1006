"""One run, however it is cut: workers, accumulation and ZeRO stages change where it is computed, not what."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.config import Recipe
from sdxl_ray.core.local import run_local
from sdxl_ray.core.runfolder import RunFolder, open_run, scan_pictures
from sdxl_ray.distributed.exported import exported
from sdxl_ray.distributed.train import POLL, worker_config
from sdxl_ray.records import read
from sdxl_ray.storage import Storage
from tests.distributed.conftest import examples, final_state, losses, quick

pytestmark = pytest.mark.slow


def _cut(recipe: str, stage: int, **changes: Any) -> Recipe:
    # A constant rate: runs of other lengths must not differ in their schedule.
    settings = {"optim__schedule": "constant_with_warmup", "parallel__workers": 2}
    return quick(recipe, parallel__zero_stage=stage, **settings, **changes)


#: Two workers; the reference of each is one process with the whole batch at once.
CUTS = {
    **{f"lora-zero{stage}": _cut("tiny_lora", stage) for stage in (0, 2)},
    # Every layer is gathered over gloo, most of a second a step.
    "lora-zero3": _cut("tiny_lora", 3, optim__steps=8),
    # Where UNet and text encoders move at once, what rounding differs grows fivefold in the four steps after these.
    "dreambooth-accumulated-checkpointed": _cut(
        "tiny_dreambooth", 2, parallel__micro_batch=2, parallel__gradient_checkpointing=True, optim__steps=12
    ),
}
#: What those nearly prove.
MORE = {
    "lora-zero1": _cut("tiny_lora", 1),
    **{f"dreambooth-zero{stage}": _cut("tiny_dreambooth", stage, optim__steps=12) for stage in (0, 1, 2)},
    "dreambooth-zero3": _cut("tiny_dreambooth", 3, optim__steps=8),
    "lora-accumulated": _cut("tiny_lora", 2, parallel__micro_batch=1),
    "dreambooth-text-offloaded": _cut(
        "tiny_dreambooth", 2, tuning__text_encoders=[1, 2], optim__ema=0.9, parallel__offload_optimizer=True
    ),
    "dreambooth-text-zero3": _cut("tiny_dreambooth", 3, tuning__text_encoders=[1, 2], optim__ema=0.9, optim__steps=8),
}


def _many_runs(config: dict[str, Any]) -> None:
    """A Ray Train worker that trains one recipe after another: the workers' start is paid once."""
    from sdxl_ray.distributed.worker import train_worker

    for one in config["runs"]:
        train_worker(one)


def _train(cuts: dict[str, Recipe], storage: Path) -> dict[str, RunFolder]:
    """Every cut of a table, trained by one worker group of two."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from sdxl_ray.distributed.mailbox import open_mailbox

    folders = {name: open_run(recipe, storage, name, scan_pictures(recipe)) for name, recipe in cuts.items()}
    place, mailbox = Storage.of(storage), open_mailbox()
    plain = [worker_config(cuts[name], run, place, mailbox) for name, run in folders.items()]
    trainer = TorchTrainer(
        _many_runs,
        train_loop_config={"runs": plain},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="cuts", storage_path=str(storage / "ray")),
    )
    with exported(POLL):
        trainer.fit()
    return folders


@pytest.fixture(scope="module")
def runs(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    return _train(CUTS, tmp_path_factory.mktemp("cuts"))


@pytest.fixture(scope="module")
def more(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    return _train(MORE, tmp_path_factory.mktemp("more"))


def _alone(recipe: Recipe, storage: Path, drawn: Path) -> RunFolder:
    """One process, with the class pictures that the workers drew: another process may round a pixel differently."""
    one = recipe.model_copy(
        update={"parallel": recipe.parallel.model_copy(update={"engine": "local", "workers": (1, 1)})}
    )
    run = open_run(one, storage, "alone", scan_pictures(one))
    if one.data.prior is not None:
        shutil.copytree(drawn / "class", run.cache / "class")
    run_local(one, run, lambda row: None)
    return run


def _same_as_one_process(recipe: Recipe, run: RunFolder, storage: Path) -> None:
    whole = recipe.parallel.model_copy(update={"micro_batch": None, "offload_optimizer": False})
    alone = _alone(recipe.model_copy(update={"parallel": whole}), storage, run.cache)
    ours, theirs = (read(one.folder / "records", "steps")["loss"].to_pylist() for one in (alone, run))
    assert len(theirs) == recipe.optim.steps
    assert theirs == pytest.approx(ours, rel=1e-4)
    assert examples(run.folder) == examples(alone.folder)
    here, there = (read(one.folder / "records", "validation")["loss"].to_pylist() for one in (alone, run))
    assert there == pytest.approx(here, rel=1e-3)
    assert final_state(run.folder).keys() == final_state(alone.folder).keys()


def _agree(runs: dict[str, RunFolder], names: list[str]) -> None:
    first, *others = ([float.fromhex(x) for x in losses(runs[name].folder)] for name in names)
    for name, other in zip(names[1:], others, strict=True):
        assert other == pytest.approx(first[: len(other)], rel=1e-4), name


@pytest.mark.parametrize("name", CUTS)
def test_two_workers_compute_what_one_process_does(name: str, runs: dict[str, RunFolder], tmp_path: Path) -> None:
    _same_as_one_process(CUTS[name], runs[name], tmp_path)


def test_zero_stages_agree_with_each_other(runs: dict[str, RunFolder]) -> None:
    _agree(runs, [f"lora-zero{stage}" for stage in (0, 2, 3)])


def test_a_finished_run_says_how_long_it_was(runs: dict[str, RunFolder]) -> None:
    summary = runs["lora-zero2"].summary()
    assert summary is not None
    assert summary["steps"] == 20


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MORE)
def test_more_cuts_compute_what_one_process_does(name: str, more: dict[str, RunFolder], tmp_path: Path) -> None:
    _same_as_one_process(MORE[name], more[name], tmp_path)


@pytest.mark.exhaustive
def test_zero_stages_of_a_whole_model_agree_with_each_other(more: dict[str, RunFolder]) -> None:
    _agree(more, [f"dreambooth-zero{stage}" for stage in (0, 1, 2, 3)])
