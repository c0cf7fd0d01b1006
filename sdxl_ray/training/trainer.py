"""One run on one rank, from recipe to artifact: what a process does once somebody has started it.

The caller brings the group, the device and a way to make an engine, so the same code is the laptop's run and a
worker's run under Ray Train. Every rank calls `run_training`; the order of collective calls is the order of this file.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.data.batch_sampler import BatchSampler, Example, View, validation_examples
from sdxl_ray.data.class_images import class_images
from sdxl_ray.data.dataset import DatasetImage, ImageSet
from sdxl_ray.data.latents import CODE_VERSION, LatentSource, TextSource
from sdxl_ray.data.tensor_cache import TensorCache, namespace
from sdxl_ray.io.collectives import Collectives, share
from sdxl_ray.io.file_exchange import exchange
from sdxl_ray.io.storage import Storage
from sdxl_ray.models.adapters import TUNINGS, Trainable, denoiser_of
from sdxl_ray.models.base_model import Components, load_components, locate, own_memory
from sdxl_ray.models.denoiser import Denoiser
from sdxl_ray.models.initial_weights import load_initial
from sdxl_ray.models.noise_schedule import Diffusion, scheduler_overrides
from sdxl_ray.training import in_training_evaluation
from sdxl_ray.training.batch import BatchEncoder
from sdxl_ray.training.checkpoint import CheckpointStore
from sdxl_ray.training.early_stopping import Best
from sdxl_ray.training.ema import Ema
from sdxl_ray.training.engine import TrainingEngine
from sdxl_ray.training.export import export, go_back
from sdxl_ray.training.loop import Report, TrainingLoop, accumulation_of, train
from sdxl_ray.training.memory_stats import restart_peak
from sdxl_ray.training.samples import Samples, on_device, sample_prompts
from sdxl_ray.training.state import read_state

#: (denoiser, trainable, micro batch, accumulation) -> engine
MakeEngine = Callable[[Denoiser, Trainable, int, int], TrainingEngine]

#: Views written into one cache file, and captions encoded at once.
_VIEWS_AT_ONCE = 16
_CAPTIONS_AT_ONCE = 32


@dataclass(frozen=True)
class RunContext:
    """Where a rank computes and what it may touch. `report` gets every row on every rank.

    folder: of the run, below the root of `storage`; a storage that is None or local means that every rank sees it.
    """

    group: Collectives
    device: torch.device
    precision: torch.dtype
    make_engine: MakeEngine
    folder: Path
    cache: Path
    report: Report
    preempted: Callable[[], bool] = lambda: False
    storage: Storage | None = None


@dataclass(frozen=True)
class Splits:
    """The images of a run: scanned once, before it started."""

    train: ImageSet
    held_out: ImageSet
    given_class: ImageSet


def run_training(recipe: Recipe, images: Splits, context: RunContext) -> dict[str, Any]:
    """Collective. Train, or resume training, in `context.folder` and write the artifact; a summary of plain numbers."""
    started = time.monotonic()
    context.report({"kind": "phase", "name": f"loading the base {recipe.base.id}", "done": 0, "total": 0})
    components = load_components(locate(recipe.base), recipe.base, dtype=context.precision, device="cpu")
    if context.device.type == "cpu":
        own_memory(components.unet, components.vae, *components.text_encoders)
    restart_peak(context.device)
    resolution = resolution_of(recipe, components.unet.config, components.vae.config)
    classes = _class_images(recipe, images, components, resolution, context)
    examiner = _examiner(recipe, images, components, resolution, context)
    sampler = BatchSampler(
        images.train,
        classes,
        recipe.data,
        resolution=resolution,
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
    )
    held_out = validation_examples(images.held_out, recipe.data, resolution)
    parts = _parts(recipe, components, _reader(images, classes), context)
    # What was drawn until here is the untuned base's: from here on the model draws as it is trained.
    components.scheduler.register_to_config(**scheduler_overrides(recipe.objective.model_dump()))
    _fill_caches(recipe, components, parts, sampler, held_out, context)

    denoiser = denoiser_of(components, recipe.tuning)
    strategy = TUNINGS[type(recipe.tuning)]
    trainable = strategy.prepare(denoiser, recipe.tuning, recipe.seed)
    load_initial(denoiser, recipe.tuning, recipe.base)
    _prepare_forward(recipe, denoiser)
    accumulation = accumulation_of(recipe, len(sampler), context.group.world)
    micro_batch = -(-len(sampler) // (context.group.world * accumulation))
    with _live_parts(recipe, components, context):
        engine = context.make_engine(denoiser, trainable, micro_batch, accumulation)
        prompts = sample_prompts(recipe, sampler.captions())
        samples = Samples(recipe, components, prompts, resolution, context.folder / "samples")
        store = CheckpointStore(
            context.folder / "checkpoints",
            context.group,
            keep=recipe.checkpoint.keep,
            keep_best=recipe.checkpoint.keep_best or examiner is not None,
            storage=context.storage,
        )
        ema = Ema(engine, recipe.optim.ema_decay) if recipe.optim.ema_decay is not None else None

        def draw_samples(step: int) -> None:
            path = samples.draw(engine, step)
            context.report({"kind": "sample", "step": step, "path": context.group.gather(path and str(path))[0]})

        def score(step: int) -> in_training_evaluation.StepScores:
            assert examiner is not None
            untuned = step == 0 and recipe.tuning.init is None
            return examiner.base if untuned else examiner.evaluate(engine, step)

        run = TrainingLoop(
            recipe,
            engine,
            parts,
            sampler,
            held_out,
            store,
            context.report,
            draw_samples,
            score if examiner is not None else None,
            ema=ema,
            preempted=context.preempted,
        )
        prepared = time.monotonic()
        start = _resume(run)
        last = train(run, start)
        trained = time.monotonic()
        exported = go_back(run, last)
        export(run, exported, components, context.folder / "artifact", context.precision)
    return {
        "trainable": trainable.count,
        "steps": last,
        "samples": (last - start) * len(sampler),
        "prepare_s": prepared - started,
        "train_s": trained - prepared,
        "validation_loss": run.best.last,
        "best_step": run.best.step,
        "best_quality": run.best.quality,
        "exported_step": exported,
        "stopped_early": run.best.stopped,
        "overfitting": asdict(run.best.overfitting) if run.best.overfitting is not None else None,
        "resumed_at": start,
    }


def resolution_of(recipe: Recipe, unet_config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> int:
    """Pixels: the recipe's, else the size that the base was made for."""
    scale = 2 ** (len(vae_config["block_out_channels"]) - 1)
    return recipe.data.resolution or int(unet_config["sample_size"]) * scale


def latent_source(
    recipe: Recipe, vae: Any, base_content: str, read: Callable[[View], Any], cache: Path
) -> LatentSource:
    """Posteriors of a base's VAE, cached under `cache` if the recipe says so; equal arguments share their entries."""
    kind = namespace("latents", base=base_content, precision=str(vae.dtype), code=CODE_VERSION)
    return LatentSource(vae, read, TensorCache(cache / "latents", kind) if recipe.data.cache_latents else None)


def _class_images(
    recipe: Recipe, images: Splits, components: Components, resolution: int, context: RunContext
) -> ImageSet:
    if recipe.data.prior is None:
        return ImageSet(())

    def progress(done: int, total: int) -> None:
        context.report({"kind": "phase", "name": "drawing class images", "done": done, "total": total})

    given = images.given_class
    components.unet.to(context.device)
    with on_device(components, context.device):
        drawn = class_images(
            recipe.data,
            len(given),
            components,
            resolution,
            context.cache / "class",
            context.group,
            progress,
            storage=context.storage,
        )
    return ImageSet((*given, *drawn))


def _examiner(
    recipe: Recipe, images: Splits, components: Components, resolution: int, context: RunContext
) -> in_training_evaluation.InTrainingEvaluation | None:
    setting = in_training_evaluation.ScoringSetup(
        name=context.folder.name,
        group=context.group,
        cache=context.cache,
        device=context.device,
        precision=context.precision,
        size=resolution,
        on_row=context.report,
    )
    return in_training_evaluation.prepare(recipe, images.train, images.held_out, components, setting)


def _reader(images: Splits, classes: ImageSet) -> Callable[[View], Any]:
    sets: dict[DatasetImage, ImageSet] = {p: s for s in (images.train, images.held_out, classes) for p in s}
    return lambda view: sets[view.image].read(view.image)


def _parts(recipe: Recipe, components: Components, read: Callable[[View], Any], context: RunContext) -> BatchEncoder:
    base = components.files.content
    # Batches are prepared while sample images are drawn, and a fast tokenizer cannot serve two threads at once.
    tokenizers = copy.deepcopy(components.tokenizers)

    def text_source(i: int) -> TextSource | None:
        if i + 1 in recipe.tuning.text_encoders:
            return None
        length = recipe.data.max_token_length
        longer = {} if length == 75 else {"max_token_length": length}  # entries of one chunk are those of before
        kind = namespace(
            "text", base=base, encoder=i + 1, precision=str(context.precision), code=CODE_VERSION, **longer
        )
        cache = TensorCache(context.cache / "text", kind) if recipe.data.cache_text else None
        return TextSource(tokenizers[i], components.text_encoders[i], i == 1, cache, length)

    return BatchEncoder(
        recipe=recipe,
        diffusion=Diffusion.of(components.scheduler.config, recipe.objective),
        vae_config=components.vae.config,
        tokenizers=tokenizers,
        latents=latent_source(recipe, components.vae, base, read, context.cache),
        text=(text_source(0), text_source(1)),
        zero_empty_prompt=components.force_zeros_for_empty_prompt,
    )


def _fill_caches(
    recipe: Recipe,
    components: Components,
    parts: BatchEncoder,
    sampler: BatchSampler,
    held_out: list[Example],
    context: RunContext,
) -> None:
    """Collective. Encode what no cache has yet, each rank its share."""
    captions = sorted({*sampler.captions(), *(e.caption for e in held_out)})
    views = [*sampler.views(), *(e.view for e in held_out)]
    sources = [parts.latents, *(source for source in parts.text if source is not None)]
    _share_caches(sources, context)
    with on_device(components, context.device):
        for source in (s for s in parts.text if s is not None):
            # Every rank must cut the same list, so one rank's view of the cache decides.
            unread = context.group.gather(source.missing(captions))[0]
            _fill(source, share(unread, context.group), _CAPTIONS_AT_ONCE, "caching captions", context)
        # By key, since an image drawn by the run has another path on another machine.
        mine = {view.key: view for view in views}
        unseen = context.group.gather([view.key for view in parts.latents.missing(list(mine.values()))])[0]
        _fill(
            parts.latents,
            [mine[key] for key in share(unseen, context.group)],
            _VIEWS_AT_ONCE,
            "caching images",
            context,
        )
    _share_caches(sources, context)


def _share_caches(sources: list[Any], context: RunContext) -> None:
    """Collective. What any rank has in its caches, all have."""
    for folder in (source.folder for source in sources if source.folder is not None):
        exchange(folder, context.group, context.storage)
    context.group.barrier()
    for source in sources:
        source.refresh()


def _fill(source: Any, items: list[Any], at_once: int, name: str, context: RunContext) -> None:
    for start in range(0, len(items), at_once):
        source.fill(items[start : start + at_once])
        done = min(start + at_once, len(items))
        context.report({"kind": "phase", "name": name, "done": done, "total": len(items)})


def _prepare_forward(recipe: Recipe, denoiser: Denoiser) -> None:
    """Checkpointing and compilation, which change speed and memory but no result."""
    encoders = [e for e in (denoiser.text_encoder_1, denoiser.text_encoder_2) if e is not None]
    if recipe.parallel.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
        for encoder in encoders:
            # transformers 5 renames it; the old name only warns there.
            enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
            enable({"use_reentrant": False})
    if recipe.parallel.compile:
        denoiser.unet.compile_repeated_blocks()


@contextmanager
def _live_parts(recipe: Recipe, components: Components, context: RunContext) -> Iterator[None]:
    """Parts that are asked in every step (no cache) stay on the device; the others wait on the CPU."""
    in_training_evaluation = not (recipe.data.cache_latents and recipe.data.cache_text)
    with on_device(components, context.device) if in_training_evaluation else nullcontext():
        yield


def _resume(run: TrainingLoop) -> int:
    """Collective. Put the newest whole checkpoint into the run, if there is one; the step to go on from."""
    run.store.clean()
    info = run.store.latest()
    if info is None:
        return 0
    read_state(run.engine, run.ema, info)
    run.best = Best.of(info.meta)
    run.report({"kind": "resume", "step": info.step, "workers": info.world})
    return info.step
