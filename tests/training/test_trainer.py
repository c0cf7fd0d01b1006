"""From a recipe to an artifact: what moves, what stays, and the same images from the files as from the memory."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import Base
from sdxl_ray.errors import RunError
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, Artifact
from sdxl_ray.models.base_model import Components, own_memory
from sdxl_ray.models.device import DTYPES
from sdxl_ray.models.pipeline import generate, load_pipeline
from sdxl_ray.plan import CPU, Plan
from sdxl_ray.training.local import precision_on, run_local
from sdxl_ray.training.run_directory import open_run, scan_images
from sdxl_ray.training.samples import sample_prompts
from tests.running import Killed, Outcome, Train

V = {"objective.prediction": "v_prediction", "objective.zero_terminal_snr": True}


def image(pipe: StableDiffusionXLPipeline) -> bytes:
    for part in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
        part.requires_grad_(False)  # for weights that want gradients, torch's CPU kernels round differently
    (drawn,) = generate(pipe, ["sks dog"], seeds=[3], num_inference_steps=3, guidance_scale=3.0, height=32, width=32)
    return np.asarray(drawn).tobytes()


def in_memory(run: Outcome) -> bytes:
    assert run.engine is not None
    assert run.components is not None
    run.engine.denoiser.eval()
    return image(run.components.pipeline())


def loaded(run: Outcome) -> StableDiffusionXLPipeline:
    return load_pipeline(Base(), Artifact.open(run.folder / "artifact"), dtype=torch.float32, device="cpu")


def same_base(run: Outcome, tiny: Components) -> bool:
    """Whether every weight of the base is what it was, adapters aside."""
    assert run.components is not None
    for name in ("unet", "vae"):
        if not _equal(getattr(tiny, name), getattr(run.components, name)):
            return False
    return all(_equal(*pair) for pair in zip(tiny.text_encoders, run.components.text_encoders, strict=True))


def _equal(base: torch.nn.Module, tuned: torch.nn.Module) -> bool:
    after = {n.replace("base_layer.", ""): p for n, p in tuned.named_parameters() if "lora_" not in n}
    before = dict(base.named_parameters())
    return before.keys() == after.keys() and all(torch.equal(p, after[n]) for n, p in before.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning.alpha": 12.0},
        {"tuning.alpha": 2.0, "tuning.text_encoders": [1, 2], "tuning.use_rslora": True},
        {"tuning.use_dora": True, "tuning.text_encoders": [1]},
        {"tuning.rank_pattern": {"attn1.to_q": 6, "self_attn.v_proj": 2}, "tuning.text_encoders": [2]},
        pytest.param(
            {"tuning.rank_pattern": {"attn1.to_q": 6}, "tuning.alpha_pattern": {"attn2.to_v": 9.0}},
            marks=pytest.mark.slow,
        ),
        {**V, "tuning.target_modules": ["to_q", "ff.net.2", "conv1"]},
    ],
    ids=["alpha", "rslora and text", "dora and text", "ranks", "alphas", "v and convolutions"],
)
def test_a_lora_draws_the_same_from_its_file(
    train: Train, recipe: Recipe, tiny: Components, embedded: Path, changes: dict[str, object]
) -> None:
    run = train(override(recipe, {**changes, "optim.steps": 2, "optim.lr": 1e-2, "optim.batch_size": 1}))
    assert same_base(run, tiny)
    here = in_memory(run)
    assert here != image(tiny.pipeline())
    pipe = loaded(run)
    assert image(pipe) == here
    if "objective.prediction" in changes:
        assert pipe.scheduler.config.prediction_type == "v_prediction"
        assert pipe.scheduler.config.rescale_betas_zero_snr
        assert pipe.scheduler.config.timestep_spacing == "trailing"
        return  # a plain pipeline does not know what the adapter predicts
    if "tuning.use_dora" in changes:
        return  # transformers draws new DoRA magnitudes for text encoders when it loads them by itself
    plain = StableDiffusionXLPipeline.from_pretrained(embedded)
    plain.load_lora_weights(run.folder / "artifact")
    own_memory(plain.unet, plain.vae, plain.text_encoder, plain.text_encoder_2)
    assert image(plain) == here


def test_a_full_artifact_stands_alone_and_every_live_weight_has_moved(
    train: Train, recipe: Recipe, tiny: Components
) -> None:
    changes = {"tuning": {"kind": "full", "text_encoders": [1, 2]}, "optim.lr": 1e-3, "optim.steps": 2, **V}
    run = train(override(recipe, changes))
    assert run.components is not None
    moved = run.components
    assert [n for n, p in moved.unet.named_parameters() if torch.equal(p, tiny.unet.get_parameter(n))] == []
    one, two = tiny.text_encoders
    still = {n for n, p in moved.text_encoders[0].named_parameters() if torch.equal(p, one.get_parameter(n))}
    # Rows of the tables that no caption names stay, but the table as a whole moves.
    assert {n for n in still if "layers.1." not in n and "final_layer_norm" not in n} == set()
    assert len(still) == 18
    assert [n for n, p in moved.text_encoders[1].named_parameters() if torch.equal(p, two.get_parameter(n))] == []
    assert _equal(tiny.vae, moved.vae)
    here = in_memory(run)
    assert image(loaded(run)) == here
    plain = StableDiffusionXLPipeline.from_pretrained(run.folder / "artifact")
    assert plain.scheduler.config.prediction_type == "v_prediction"
    own_memory(plain.unet, plain.vae, plain.text_encoder, plain.text_encoder_2)
    assert image(plain) == here


@pytest.mark.parametrize(
    ("asked", "precision", "written"),
    [("auto", "fp32", "fp16"), ("auto", "bf16", "bf16"), ("fp32", "fp32", "fp32"), ("bf16", "fp32", "bf16")],
)
def test_an_adapter_is_written_as_planned(
    train: Train, recipe: Recipe, asked: str, precision: str, written: str
) -> None:
    recipe = override(recipe, {"optim.steps": 1, "artifact.dtype": asked, "parallel.precision": precision})
    run = train(recipe, precision=DTYPES[precision])
    planned = Plan.of(recipe, CPU).setting
    assert planned.artifact_dtype == written
    for name in (LORA_WEIGHTS, KOHYA_WEIGHTS):
        file = run.folder / "artifact" / name
        weights = {k: w for k, w in load_file(file).items() if not k.endswith(".alpha")}
        assert {weight.dtype for weight in weights.values()} == {DTYPES[written]}
        assert file.stat().st_size == pytest.approx(planned.artifact_bytes, rel=0.15)
    pipe = load_pipeline(Base(), Artifact.open(run.folder / "artifact"), dtype=torch.float32, device="cpu")
    layers = [p for name, p in pipe.unet.named_parameters() if "lora_A" in name]
    assert layers and all(torch.equal(p, p.to(DTYPES[written]).float()) for p in layers)


def test_the_artifact_holds_the_average(train: Train, recipe: Recipe) -> None:
    run = train(override(recipe, {"optim.ema_decay": 0.5, "optim.batch_size": 1}))
    state = load_file(run.folder / "checkpoints" / "step-0000004" / "state-00000.safetensors")
    written = load_file(run.folder / "artifact" / LORA_WEIGHTS)
    key = next(name for name in written if name.endswith("attn1.to_q.lora_B.weight"))
    ours = key.replace(".weight", ".default.weight")
    assert torch.equal(written[key], state[f"average|{ours}"])
    assert not torch.equal(written[key], state[f"weight|{ours}"])
    assert torch.equal(run.weights[ours], state[f"weight|{ours}"])
    manifest = Artifact.open(run.folder / "artifact").manifest
    assert (manifest.kind, manifest.step, manifest.base.id) == ("lora", 4, "tiny")


@pytest.mark.parametrize(
    "precision", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=["bf16", "fp16"]
)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_mixed_precision_trains_draws_and_exports(
    train: Train, recipe: Recipe, kind: str, precision: torch.dtype
) -> None:
    changes = {"tuning": {"kind": kind}, "optim.lr": 1e-4, "optim.steps": 2, "optim.batch_size": 2}
    full = train(override(recipe, changes), "full")
    half = train(override(recipe, changes), "half", precision=precision)
    assert list(half.losses.values()) == pytest.approx(list(full.losses.values()), rel=0.06)
    assert half.losses != full.losses
    grids = sorted(path.name for path in (half.folder / "samples").iterdir())
    assert grids == ["grid.png", "step-0000000", "step-0000002"]
    pipe = load_pipeline(Base(), Artifact.open(half.folder / "artifact"), dtype=precision, device="cpu")
    assert {p.dtype for p in pipe.unet.parameters()} <= {precision, torch.float32}


def test_checkpointing_changes_no_loss(train: Train, recipe: Recipe) -> None:
    recipe = override(
        recipe, {"tuning.text_encoders": [1, 2], "tuning.dropout": 0.1, "optim.batch_size": 1, "optim.steps": 2}
    )
    plain = train(recipe, "plain")
    saving = train(override(recipe, {"parallel.gradient_checkpointing": True}), "saving")
    assert saving.engine is not None
    assert saving.engine.denoiser.unet.is_gradient_checkpointing
    assert list(saving.losses.values()) == pytest.approx(list(plain.losses.values()), rel=1e-6)


def test_samples_are_drawn_as_the_model_is_trained(train: Train, recipe: Recipe) -> None:
    recipe = override(recipe, {"optim.steps": 1, "optim.batch_size": 1, "evaluation.num_inference_steps": 3})
    folders = [train(override(recipe, c), n).folder / "samples" / "step-0000001" for c, n in (({}, "eps"), (V, "v"))]
    eps, v = (np.asarray(Image.open(folder / "000.png"), int) for folder in folders)
    assert np.abs(eps - v).mean() > 5


def test_prompts_of_the_samples(recipe: Recipe) -> None:
    assert sample_prompts(recipe, []) == ["sks dog"]
    places = sample_prompts(override(recipe, {"evaluation.prompts": []}), [])
    assert places[:2] == ["a photo of sks dog", "a photo of sks dog on the beach"]
    captions = override(recipe, {"evaluation.prompts": [], "data.subject": None})
    assert sample_prompts(captions, list("abcdef")) == list("abcd")


def test_an_artifact_that_cannot_be_written_leaves_the_checkpoints(
    train: Train, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    from sdxl_ray.training import export as module

    real = module._write_artifact

    def small_disk(*arguments: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            real(*arguments)  # type: ignore[arg-type]  # passed through
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    recipe = override(recipe, {"optim.steps": 1, "optim.batch_size": 1})
    monkeypatch.setattr(module, "_write_artifact", small_disk)
    with pytest.raises(RunError, match=r"the artifact could not be written: .*File too large"):
        train(recipe)
    monkeypatch.setattr(module, "_write_artifact", real)
    assert train(recipe).summary["resumed_at"] == 1


def test_the_old_artifact_goes_only_when_the_new_one_is_there(
    train: Train, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(recipe, {"optim.steps": 1, "optim.batch_size": 1})
    first = train(recipe)
    before = Artifact.open(first.folder / "artifact").hash
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "artifact.partial":
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    train(recipe, kill_at=1)
    kept = [first.folder / name for name in ("artifact", ".artifact.before")]
    assert [Artifact.open(folder).hash for folder in kept if folder.is_dir()] == [before]
    monkeypatch.setattr(Path, "rename", rename)
    again = train(recipe)
    assert (again.folder / "artifact" / "manifest.json").is_file()
    assert not list(again.folder.glob(".artifact*")) + list(again.folder.glob("*.partial"))


def test_class_images_of_another_precision_are_others(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    prior = {"num_class_images": 1, "num_inference_steps": 1}
    recipe = override(recipe, {"data.prior": prior, "optim.steps": 1, "optim.batch_size": 1})
    for name, precision in (("full", torch.float32), ("half", torch.bfloat16)):
        train(recipe, name, precision=precision)
    assert len(list((tmp_path / "cache" / "class").iterdir())) == 2


def test_auto_is_never_a_precision_that_the_card_imitates(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    auto, gpu = override(recipe, {"parallel.precision": "auto"}), torch.device("cuda")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precision_on(auto, gpu) == torch.float32
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    assert precision_on(auto, gpu) == torch.bfloat16
    assert precision_on(auto, torch.device("cpu")) == torch.float32


def test_a_run_in_this_process_keeps_its_records(recipe: Recipe, tmp_path: Path) -> None:
    recipe = override(recipe, {"optim.steps": 2, "optim.batch_size": 1})
    run = open_run(recipe, tmp_path, "dog", scan_images(recipe))
    assert run.summary() is None
    rows: list[dict[str, object]] = []
    summary = run_local(recipe, run, rows.append)
    assert json.loads((run.folder / "summary.json").read_text()) == summary == run.summary()
    kinds = {str(row["kind"]) for row in rows}
    assert {"phase", "step", "validation", "sample", "checkpoint", "artifact"} <= kinds
    (steps,) = (run.folder / "records").glob("steps-*.parquet")
    table = pq.read_table(steps).to_pylist()
    assert [row["loss"] for row in table] == [row["loss"] for row in rows if row["kind"] == "step"]
    board = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert {"train/loss", "train/lr", "validation/loss"} <= set(board.Tags()["scalars"])
    assert board.Tags()["images"] == ["samples"]
    (run.artifact / LORA_WEIGHTS).write_bytes(b"")
    assert run.summary() is None  # an artifact that was altered is no result
