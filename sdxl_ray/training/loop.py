"""The training loop: the only one, for LoRA and full tuning, one process and a cluster, every ZeRO stage.

A global batch is cut into chunks, `accumulation` per rank; all randomness is addressed by (seed, step, index in the
global batch), and the loss of a step is the weighted mean over the whole global batch. So the cut does not matter, but
for `tuning.dropout`: its masks are drawn for a chunk as a whole, so another cut draws others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.data.batch_sampler import BatchSampler, Example
from sdxl_ray.errors import RunError
from sdxl_ray.models.noise_schedule import generator
from sdxl_ray.training.batch import Batch, BatchEncoder
from sdxl_ray.training.checkpoint import CheckpointStore
from sdxl_ray.training.early_stopping import Best
from sdxl_ray.training.ema import Ema
from sdxl_ray.training.engine import TrainingEngine
from sdxl_ray.training.in_training_evaluation import StepScores
from sdxl_ray.training.memory_stats import peak_bytes
from sdxl_ray.training.optim import lr_multiplier
from sdxl_ray.training.preemption import PreemptionCheck
from sdxl_ray.training.state import write_state
from sdxl_ray.training.validation import validation_loss

#: Steps between reads of the losses on a GPU: each read waits for the device.
GPU_LOG_EVERY = 10

Report = Callable[[dict[str, Any]], None]


@dataclass
class TrainingLoop:
    """A run that is ready to go: what to train, on what, and whom to tell.

    `report(row)` is called on every rank with the same rows; `look(step)` draws sample images; `score(step)` gives
    the scores that choose the best step; `preempted()` is collective and says whether a node is about to go.
    """

    recipe: Recipe
    engine: TrainingEngine
    parts: BatchEncoder
    sampler: BatchSampler
    held_out: Sequence[Example]
    store: CheckpointStore
    report: Report
    draw_samples: Callable[[int], None]
    score: Callable[[int], StepScores] | None = None
    ema: Ema | None = None
    preempted: Callable[[], bool] = lambda: False
    best: Best = field(default_factory=Best)


def cut(examples: Sequence[Example], world: int, rank: int, accumulation: int) -> list[list[Example]]:
    """This rank's chunks of a global batch, `accumulation` of them and all of one size on every rank.

    Where the batch does not divide, chunks are filled with copies of weight 0: any number of workers computes the same.
    """
    size = math.ceil(len(examples) / (world * accumulation))
    filled = list(examples)
    while len(filled) < size * world * accumulation:
        filled.append(replace(examples[len(filled) % len(examples)], weight=0.0))
    chunks = [filled[i : i + size] for i in range(0, len(filled), size)]
    return chunks[rank * accumulation : (rank + 1) * accumulation]


def accumulation_of(recipe: Recipe, global_batch: int, world: int) -> int:
    """Forwards per optimizer step on each worker, from `parallel.micro_batch`."""
    per_worker = math.ceil(global_batch / world)
    return math.ceil(per_worker / (recipe.parallel.micro_batch or per_worker))


def train(run: TrainingLoop, start: int = 0) -> int:
    """Train from step `start` to `optim.steps`, or until quality no longer rises; the last step.

    Checkpoints, validation, samples and scores come during training; the best
    evaluation so far gets a checkpoint, so that the run can return to it. Raises RunError on every rank for a loss that
    is not finite, naming the step and the images.
    """
    recipe, engine = run.recipe, run.engine
    multiplier = lr_multiplier(recipe.optim)
    log_every = GPU_LOG_EVERY if engine.device.type == "cuda" else 1
    ledger = PendingLosses(run, log_every)
    engine.denoiser.train()
    last = recipe.optim.steps
    preempted = PreemptionCheck(engine.group, run.preempted, start)
    if run.best.stopped:
        return start
    if start == 0:
        _validate(run, 0, False)
        _evaluate(run, 0)
    ledger.restart_clock()
    with Prefetch(run, start) as batches:
        for step, (examples, micro_batches) in batches:
            engine.set_lr(multiplier(step))
            losses = _step(run, step, len(examples), micro_batches)
            done = step + 1
            if run.ema is not None:
                run.ema.update(done)
            ledger.add(done, examples, losses, recipe.optim.lr * multiplier(step))
            checkpoint_due = done % recipe.checkpoint.every == 0 or done == last
            evaluation_due = done == last or (recipe.evaluation.every > 0 and done % recipe.evaluation.every == 0)
            if done % log_every == 0 or checkpoint_due or evaluation_due:
                ledger.flush()
            if evaluation_due or checkpoint_due:
                _validate(run, done, checkpoint_due)
            if evaluation_due:
                checkpoint_due |= _evaluate(run, done)
            if preempted(done) or checkpoint_due:
                save(run, done)
            if evaluation_due or checkpoint_due:
                ledger.restart_clock()
            if run.best.stopped:
                return done
    return last


def save(run: TrainingLoop, step: int) -> None:
    """Collective. Write a checkpoint of `step`.

    The row before it lets the records be written out: once a checkpoint exists, nothing before it is computed again.
    """
    started = time.monotonic()
    run.report({"kind": "saving", "step": step})
    digest = run.store.save(step, run.best.meta(), lambda folder: write_state(run.engine, run.ema, folder))
    run.report({"kind": "checkpoint", "step": step, "sha256": digest, "seconds": time.monotonic() - started})


def _step(run: TrainingLoop, step: int, global_batch: int, micro_batches: list[Batch]) -> list[tuple[Batch, Tensor]]:
    """One optimizer step; the losses of this rank's examples. Repeats the batch when fp16 overflowed."""
    engine = run.engine
    share = engine.group.world * engine.accumulation / global_batch
    while True:
        losses, moved = [], False
        for x in micro_batches:
            # Dropout is the one ambient generator: set it by what is computed, not by what came before.
            torch.manual_seed(generator(run.recipe.seed, "dropout", step, x.indices[0]).initial_seed())
            on_device = x.to(engine.device)
            loss_B = run.parts.losses(engine, on_device)
            engine.backward((loss_B * on_device.weight_B).sum() * share)
            losses.append((x, loss_B.detach()))
            moved = engine.step()
        # An fp16 overflow is tried again at a lower loss scale; a loss that is not finite will not get better by that.
        if moved or any(engine.group.gather(not all(bool(loss_B.isfinite().all()) for _, loss_B in losses))):
            return losses
        if engine.hopeless():
            raise RunError(
                f"every gradient of step {step + 1} overflows: lower optim.lr, or use parallel.precision=bf16 or fp32"
            )


def _remedy(run: TrainingLoop) -> str:
    """What may help against numbers that are not finite; fp32 is no advice for a run that computes in it."""
    return "lower optim.lr" + ("" if run.engine.precision == torch.float32 else ", or use parallel.precision=fp32")


def _validate(run: TrainingLoop, step: int, checkpointed: bool) -> None:
    if not run.held_out:
        return
    with _averaged(run, step), _timed(run, step, "validation"):
        loss = validation_loss(run.engine, run.parts, run.held_out)
    if not math.isfinite(loss):
        raise RunError(f"the validation loss is {loss} after step {step}: {_remedy(run)}")
    # Only a step that has a checkpoint can be gone back to; where there are scores, they choose it.
    run.best.validated(loss, step if checkpointed and run.score is None else None)
    run.report({"kind": "validation", "step": step, "loss": loss, "n": len(run.held_out) * run.recipe.evaluation.draws})


def _evaluate(run: TrainingLoop, step: int) -> bool:
    """Collective. Generate samples, score them. Returns True if the step needs a checkpoint (best so far, or last)."""
    with _averaged(run, step):
        with _timed(run, step, "samples"):
            run.draw_samples(step)
        scores = run.score(step) if run.score is not None else None
    if scores is None:
        return False
    run.report(scores.row)
    if step == 0:
        return False  # the base: every step that trained is held against it
    best, patience = run.best, run.recipe.evaluation.patience
    known = best.overfitting
    better = best.scored(step, scores.measured, patience)
    if best.overfitting is not None and known is None:
        run.report({"kind": "overfitting", "step": step, "text": best.overfitting.text})
    if best.stopped:
        run.report({"kind": "note", "text": f"step {step}: stopping, quality has not risen for {patience} evaluations"})
    return better or best.stopped


@contextmanager
def _timed(run: TrainingLoop, step: int, name: str) -> Iterator[None]:
    """Report the seconds of what is no training; scores and checkpoints report their own."""
    started = time.monotonic()
    yield
    run.report({"kind": "timing", "step": step, "name": name, "seconds": time.monotonic() - started})


def _averaged(run: TrainingLoop, step: int) -> AbstractContextManager[None]:
    """The averaged weights where there are any: what is looked at is what will be exported."""
    return run.ema.swapped_in() if run.ema is not None and step else nullcontext()


class PendingLosses:
    """Losses of the steps since they were last reported: gathered from all ranks at once, one row per step."""

    def __init__(self, run: TrainingLoop, every: int) -> None:
        self._run, self._every = run, every
        self._steps: list[tuple[int, list[Example], list[tuple[Batch, Tensor]], float]] = []
        self._since = time.monotonic()

    def add(self, step: int, examples: list[Example], losses: list[tuple[Batch, Tensor]], lr: float) -> None:
        """Remember a step without waiting for the device."""
        self._steps.append((step, examples, losses, lr))

    def restart_clock(self) -> None:
        """Leave what was not training out of the next step's time."""
        self._since = time.monotonic()

    def flush(self) -> None:
        """Collective. Report every remembered step; RunError for a loss that is not finite."""
        if not self._steps:
            return
        engine = self._run.engine
        mine = [
            {i: float(v) for x, loss_B in losses for i, v in zip(x.indices, loss_B.tolist(), strict=True)}
            for _, _, losses, _ in self._steps
        ]
        norm = engine.grad_norm()
        ranks = engine.group.gather((mine, peak_bytes(engine.device)))
        seconds = (time.monotonic() - self._since) / len(self._steps)
        last = self._steps[-1][0]
        for k, (step, examples, _, lr) in enumerate(self._steps):
            losses = {i: value for values, _ in ranks for i, value in values[k].items()}
            self._require_finite(step, examples, losses, norm)
            # fsum in index order: the same number for any number of workers, as far as the forwards agree.
            loss = math.fsum(e.weight * losses[e.index] for e in examples) / len(examples)
            row = {"kind": "step", "step": step, "loss": loss, "lr": lr, "seconds": seconds}
            row["grad_norm"] = norm if step == last else None  # the engine knows that of its last step
            row |= {"samples_per_s": len(examples) / seconds, "peak_bytes": max(peak for _, peak in ranks)}
            row |= {"workers": engine.group.world, "steps": self._run.recipe.optim.steps}
            row["examples"] = [(e.index, e.view.key, losses[e.index]) for e in examples]
            self._run.report(row)
        self._steps.clear()
        self.restart_clock()

    def _require_finite(self, step: int, examples: list[Example], losses: dict[int, float], norm: float) -> None:
        bad = [e for e in examples if not math.isfinite(losses[e.index])]
        # A gradient that overflowed has spoilt the weights, though the loss before it was a number.
        what = "loss" if bad else "gradient"
        if bad or (not math.isfinite(norm) and step == self._steps[-1][0]):
            sources = ", ".join(sorted({e.view.image.source for e in bad or examples}))
            raise RunError(
                f"the {what} is not finite at step {step} for {sources}: nothing of this step is kept; "
                + _remedy(self._run)
            )


class Prefetch:
    """Global batches by step with this rank's micro-batches, the next one prepared while the current one computes."""

    def __init__(self, run: TrainingLoop, start: int) -> None:
        self._run, self._start = run, start

    def __enter__(self) -> Iterator[tuple[int, tuple[list[Example], list[Batch]]]]:
        self._pool = ThreadPoolExecutor(1, "prefetch")
        return self._batches()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _prepare(self, step: int) -> tuple[list[Example], list[Batch]]:
        run, group = self._run, self._run.engine.group
        examples = run.sampler.batch(step)
        chunks = cut(examples, group.world, group.rank, run.engine.accumulation)
        return examples, [run.parts.inputs(chunk, step, run.recipe.seed) for chunk in chunks]

    def _batches(self) -> Iterator[tuple[int, tuple[list[Example], list[Batch]]]]:
        last = self._run.recipe.optim.steps
        if self._start >= last:
            return
        coming = self._pool.submit(self._prepare, self._start)
        for step in range(self._start, last):
            ready = coming.result()
            if step + 1 < last:
                coming = self._pool.submit(self._prepare, step + 1)
            yield step, ready
