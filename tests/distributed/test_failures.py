"""Runs that cannot go on: they end with one line and leave what was good."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.distributed.train import launch
from sdxl_ray.errors import RunError, UserError
from tests.conftest import Cli
from tests.distributed.conftest import quick
from tests.distributed.cuts import Cut

pytestmark = [pytest.mark.slow, pytest.mark.shares("cuts"), pytest.mark.chaos]


def test_a_loss_that_is_not_finite_names_the_step_and_the_images(cuts: dict[str, Cut]) -> None:
    """Both workers end in peace: the run after it in the group has been trained."""
    diverging = cuts["diverging"]
    assert isinstance(diverging.fatal_error, RunError)
    assert re.match(r"the loss is not finite at step \d+ for .*robot.*png", str(diverging.fatal_error))
    assert not diverging.run.artifact.exists()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_run_that_its_watcher_gives_up_ends_soon(ray_cluster: None, tmp_path: Path, workers: int) -> None:
    """What a search finds wrong with an evaluation is raised where the rows arrive, in a thread.

    Of two workers the other waits in a collective call: the first falls after 10 s, and Ray starts both once more.
    """

    def on_row(row: dict[str, Any]) -> None:
        if row["kind"] == "step" and row["step"] >= 2:
            raise RunError("quality is nan at step 2: lower optim.lr")

    recipe = quick("tiny_lora", parallel__workers=workers, optim__steps=100_000)
    with pytest.raises(RunError, match=r"^quality is nan at step 2: lower optim.lr$"):
        launch(recipe, storage=tmp_path, name="run", on_row=on_row)
    assert not (tmp_path / "run" / "artifact").exists()


def test_more_gpus_than_there_are_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this cluster has no GPU"):
        launch(quick("tiny_lora", resources__gpus_per_worker=1), storage=tmp_path, name="run")
    assert not (tmp_path / "run").exists()


def test_no_cluster_at_an_address_is_one_line(cli: Cli) -> None:
    words = ["data.images=subject:robot", "data.subject=sks robot", "--address", "127.0.0.1:1"]
    ended = cli("train", "tiny_lora", *words)
    assert ended.returncode == 2
    assert "error: no Ray cluster at '127.0.0.1:1'" in ended.stderr
