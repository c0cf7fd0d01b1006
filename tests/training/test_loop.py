"""The loop: the same run however it is cut and whenever it is killed; and never a silent NaN."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.data.batch_sampler import Example
from sdxl_ray.data.dataset import DatasetImage
from sdxl_ray.errors import RunError
from sdxl_ray.io.collectives import SingleProcess
from sdxl_ray.io.records import read
from sdxl_ray.training.loggers import RunLogger
from sdxl_ray.training.loop import PendingLosses, cut
from sdxl_ray.training.samples import Samples
from tests.running import Train

FULL = {"tuning": {"kind": "full"}, "optim.lr": 1e-4}
#: Of `recipe`, on the CPU in fp32. Raise them only for a change that is meant to change every run (another base).
GOLDEN = {
    "lora": [0.40332, 0.28495, 0.26340, 0.23034],
    "full": [0.40332, 0.26344, 0.23024, 0.18690],
}


def with_prior(recipe: Recipe, others: Path) -> Recipe:
    """Full tuning, two instance and two class images a step."""
    prior = {"images": str(others), "num_class_images": 4, "prior_loss_weight": 0.5}
    return override(recipe, {**FULL, "data.prior": prior, "optim.batch_size": 2})


def relative(a: dict[int, float], b: dict[int, float]) -> float:
    """Largest relative difference of two runs' losses; they must have the same steps."""
    assert a.keys() == b.keys()
    return max(abs(a[step] - b[step]) / abs(a[step]) for step in a)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_golden_losses(train: Train, recipe: Recipe, kind: str) -> None:
    changes = {"lora": {}, "full": FULL}[kind]
    run = train(override(recipe, changes))
    assert list(run.losses.values()) == pytest.approx(GOLDEN[kind], abs=1e-4)
    assert run.summary["steps"] == 4
    assert run.summary["samples"] == 16


def test_a_step_lasts_as_long_as_its_training(train: Train, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the base's samples and validation before it, which have their own times."""
    draw = Samples.draw

    def slowly(samples: Samples, engine: Any, step: int) -> Path | None:
        time.sleep(0 if step else 1.5)
        return draw(samples, engine, step)

    monkeypatch.setattr(Samples, "draw", slowly)
    run = train(override(recipe, {"optim.steps": 1}))
    assert run.of("step")[0]["seconds"] < 1.5
    timings = {(row["step"], row["name"]): row["seconds"] for row in run.of("timing")}
    assert timings.keys() == {(0, "validation"), (0, "samples"), (1, "validation"), (1, "samples")}
    assert timings[0, "samples"] > 1.5


@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", ["lora", "full with prior"])
def test_one_run_however_it_is_cut(train: Train, recipe: Recipe, others: Path, kind: str, steps: int) -> None:
    recipe = recipe if kind == "lora" else with_prior(recipe, others)
    recipe = override(recipe, {"optim.steps": steps})
    whole = train(recipe, "whole")
    for micro_batch in (2, 1) if steps == 20 else (1,):
        parts = train(override(recipe, {"parallel.micro_batch": micro_batch}), f"parts{micro_batch}")
        assert parts.engine is not None
        assert parts.engine.accumulation == 4 // micro_batch
        assert relative(whole.losses, parts.losses) < 1e-4
        assert [row["examples"][0][:2] for row in parts.of("step")] == [r["examples"][0][:2] for r in whole.of("step")]
    assert max(whole.losses.values()) - min(whole.losses.values()) > 0.01


def test_a_batch_that_does_not_divide_weighs_the_same(train: Train, recipe: Recipe) -> None:
    recipe = override(recipe, {"optim.batch_size": 5, "optim.steps": 3})
    whole = train(recipe, "whole")
    parts = train(override(recipe, {"parallel.micro_batch": 2}), "parts")
    assert parts.engine is not None
    assert parts.engine.accumulation == 3
    assert relative(whole.losses, parts.losses) < 1e-5
    norms = [(a["grad_norm"], b["grad_norm"]) for a, b in zip(whole.of("step"), parts.of("step"), strict=True)]
    assert all(a == pytest.approx(b, rel=1e-3) for a, b in norms)


def test_a_look_at_many_steps_knows_the_gradient_of_the_last(recipe: Recipe, tmp_path: Path) -> None:
    """As on a GPU, where nobody waits for a step's gradient before its window ends."""
    rows: list[dict[str, Any]] = []
    engine = SimpleNamespace(grad_norm=lambda: 2.5, group=SingleProcess(), device=torch.device("cpu"))
    ledger = PendingLosses(SimpleNamespace(engine=engine, recipe=recipe, report=rows.append), 10)  # type: ignore[arg-type]  # what it asks
    example = SimpleNamespace(index=0, weight=1.0, view=SimpleNamespace(key="ab", image=None))
    for step in (1, 2, 3):
        ledger.add(step, [example], [(SimpleNamespace(indices=[0]), torch.ones(1))], 1e-3)  # type: ignore[list-item]
    ledger.flush()
    assert [(row["step"], row["grad_norm"]) for row in rows] == [(1, None), (2, None), (3, 2.5)]
    run_logger = RunLogger(tmp_path)
    for row in rows:
        run_logger(row)
    run_logger.close()
    assert read(tmp_path / "records", "steps")["grad_norm"].to_pylist() == [None, None, 2.5]


def test_the_cut_gives_every_rank_as_much_and_loses_nothing(recipe: Recipe) -> None:
    examples = [Example(None, "", False, 1.0, i) for i in range(5)]  # type: ignore[arg-type]  # views play no part
    for world, accumulation in ((1, 1), (2, 1), (1, 4), (3, 2), (7, 1)):
        chunks = [c for rank in range(world) for c in cut(examples, world, rank, accumulation)]
        assert len(chunks) == world * accumulation
        assert len({len(chunk) for chunk in chunks}) == 1
        flat = [e for chunk in chunks for e in chunk]
        assert flat[:5] == examples
        assert all(e.weight == 0 and replace(e, weight=1.0) in examples for e in flat[5:])


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_killed_and_started_again_is_the_same_run(train: Train, recipe: Recipe, kind: str) -> None:
    changes = {"lora": {"optim.ema_decay": 0.9, "tuning.dropout": 0.1}, "full": FULL}[kind]
    changes |= {"artifact.single_file": kind == "full"}
    changes |= {"optim.steps": 6, "optim.batch_size": 2, "optim.lr_scheduler": "cosine", "checkpoint.every": 3}
    recipe = override(recipe, changes)
    straight = train(recipe, "straight")
    killed = train(recipe, "killed", kill_at=5)
    assert killed.summary == {}
    again = train(recipe, "killed")
    assert again.summary["resumed_at"] == 3
    assert again.of("resume")[0]["step"] == 3
    together = {**killed.losses, **again.losses}
    assert {s: v.hex() for s, v in together.items()} == {s: v.hex() for s, v in straight.losses.items()}
    mine, theirs = straight.weights, again.weights
    assert all(torch.equal(w, theirs[name]) for name, w in mine.items())
    assert again.of("validation")[-1]["loss"].hex() == straight.of("validation")[-1]["loss"].hex()
    files = [p.relative_to(straight.folder) for p in (straight.folder / "artifact").rglob("*.safetensors")]
    assert len(files) == {"lora": 2, "full": 5}[kind]
    for file in files:
        one, two = load_file(straight.folder / file), load_file(again.folder / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_node_that_is_about_to_go_is_answered_with_a_checkpoint(train: Train, recipe: Recipe) -> None:
    recipe = override(recipe, {"checkpoint.every": 100})
    notices = [True]
    run = train(recipe, preempted=lambda: bool(notices) and notices.pop())
    assert [row["step"] for row in run.of("checkpoint")] == [1, 4]  # asked after the first step, and reported once


def test_a_run_that_died_while_writing_its_artifact_only_writes_it(train: Train, recipe: Recipe) -> None:
    first = train(recipe)
    mine = first.weights
    (first.folder / "artifact" / "manifest.json").unlink()
    again = train(recipe)
    assert again.losses == {}
    assert (again.folder / "artifact" / "manifest.json").is_file()
    theirs = again.weights
    assert all(torch.equal(w, theirs[name]) for name, w in mine.items())
    assert again.summary["validation_loss"] == first.summary["validation_loss"]


def test_a_loss_that_is_not_finite_names_the_step_and_the_image(train: Train, recipe: Recipe) -> None:
    recipe = override(recipe, {"optim.steps": 8, "checkpoint.every": 1, "data.holdout": 0})
    clean = train(recipe, "clean", kill_at=3)
    seen = {row["step"]: {view.split("-")[0] for _, view, _ in row["examples"]} for row in clean.of("step")}
    images = {p.key: p for p in _images(recipe)}
    # The image that is in step 2 or 3 but not in the first: the model fails on it alone.
    guilty = next(iter((seen[2] | seen[3]) - seen[1]))
    step = min(s for s, keys in seen.items() if guilty in keys)
    height, width = images[guilty].height, images[guilty].width

    def spoil(engine: object) -> None:
        def hook(_: object, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            mine = (inputs[3][:, 0] == height) & (inputs[3][:, 1] == width)
            return torch.where(mine.view(-1, 1, 1, 1), torch.full_like(out, math.nan), out)

        engine.denoiser.register_forward_hook(hook)  # type: ignore[attr-defined]  # a LocalEngine

    for name, precision in (("fp32", torch.float32), ("fp16", torch.float16)):
        with pytest.raises(RunError, match=rf"the loss is not finite at step {step} for {images[guilty].source}: "):
            train(recipe, name, spoil=spoil, precision=precision)
    kept = sorted(p.name for p in (clean.folder.parent / "fp32" / "checkpoints").iterdir())
    assert kept == [f"step-{s:07d}" for s in range(max(1, step - 2), step)]


def test_a_gradient_that_is_not_finite_ends_the_run_before_a_checkpoint(train: Train, recipe: Recipe) -> None:
    recipe = override(recipe, {"checkpoint.every": 1, "data.holdout": 0})

    def spoil(engine: object) -> None:
        engine.trainable.named[0][1].register_hook(lambda grad: grad * math.inf)  # type: ignore[attr-defined]

    with pytest.raises(RunError, match="the gradient is not finite at step 1 for "):
        train(recipe, "run", spoil=spoil)


def test_a_validation_loss_that_is_not_finite_ends_the_run(train: Train, recipe: Recipe) -> None:
    with pytest.raises(RunError, match="the validation loss is nan after step 0"):
        train(recipe, spoil=lambda engine: engine.denoiser.unet.conv_out.bias.data.fill_(math.nan))


def test_validation_is_fixed_unweighted_and_on_the_average(train: Train, recipe: Recipe) -> None:
    changes = {"evaluation.every": 2, "objective.weighting": "min_snr", "optim.ema_decay": 0.5}
    one = train(override(recipe, changes), "one")
    two = train(override(recipe, {**changes, "seed": 9, "parallel.micro_batch": 3}), "two")
    plain = train(override(recipe, {"evaluation.every": 2}), "plain")
    first = [run.of("validation")[0] for run in (one, two, plain)]
    # Before the first step nothing that trains has moved: neither seed, cut nor weighting may show.
    assert len({row["loss"].hex() for row in first}) == 1
    assert first[0]["n"] == 1
    assert [row["step"] for row in one.of("validation")] == [0, 2, 4]
    assert one.of("validation")[2]["loss"] != first[0]["loss"]


def _images(recipe: Recipe) -> list[DatasetImage]:
    from sdxl_ray.training.run_directory import scan_images

    return list(scan_images(recipe).train)
