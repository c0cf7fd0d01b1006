"""Optimizers, schedules and the average: what the libraries compute, and the same after a stop as without one."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import FullTuning, LoraTuning, Optim
from sdxl_ray.errors import UserError
from sdxl_ray.models.adapters import TUNINGS, Trainable, denoiser_of
from sdxl_ray.models.base_model import Components
from sdxl_ray.training.ema import Ema
from sdxl_ray.training.engine import LocalEngine
from sdxl_ray.training.optim import build_optimizer, lr_multiplier, param_groups, require_available
from tests.running import Train


def trainable() -> Trainable:
    """Two UNet weights and a text weight."""
    numbers = torch.Generator().manual_seed(0)
    matrix, vector, text = (nn.Parameter(torch.randn(*shape, generator=numbers)) for shape in ((4, 3), (5,), (2, 2)))
    return Trainable(unet=[("unet.a", matrix), ("unet.b", vector)], text=[("text_encoder_1.c", text)])


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler": "linear"},
        {"lr_scheduler": "linear", "warmup_steps": 5},
        {"lr_scheduler": "cosine", "warmup_steps": 3},
        {"lr_scheduler": "cosine", "lr_num_cycles": 2.0},
        {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2.0},
        {"lr_scheduler": "polynomial", "lr_power": 2.0, "lr": 1e-5},
        {"lr_scheduler": "constant"},
        {"lr_scheduler": "constant_with_warmup", "warmup_steps": 4},
        {"lr_scheduler": "piecewise_constant", "step_rules": "1:5,0.1:10,0.01"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_schedules_are_those_of_diffusers(settings: dict[str, object]) -> None:
    optim = Optim(steps=20, **settings)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=optim.lr)
    cycles = {"cosine": optim.lr_num_cycles / 2, "cosine_with_restarts": int(optim.lr_num_cycles)}.get(
        optim.lr_scheduler, 1
    )
    if optim.lr_scheduler == "cosine":
        from diffusers.optimization import get_cosine_schedule_with_warmup

        theirs = get_cosine_schedule_with_warmup(optimizer, optim.warmup_steps, 20, num_cycles=cycles)
    else:
        theirs = get_scheduler(
            optim.lr_scheduler,
            optimizer,
            step_rules=optim.step_rules,
            num_warmup_steps=optim.warmup_steps,
            num_training_steps=20,
            num_cycles=cycles,
            power=optim.lr_power,
        )
    ours = lr_multiplier(optim)
    for step in range(20):
        assert optim.lr * ours(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_broken_rules_and_rates_are_refused() -> None:
    with pytest.raises(UserError, match=r"optim.step_rules '1:x,0.1': write multiplier:step pairs"):
        lr_multiplier(Optim(lr_scheduler="piecewise_constant", step_rules="1:x,0.1"))
    with pytest.raises(UserError, match=r"optim.lr 1e-08: lr_scheduler polynomial falls to 1e-7"):
        lr_multiplier(Optim(lr_scheduler="polynomial", lr=1e-8))


def test_text_encoders_learn_at_half_the_rate_unless_told() -> None:
    def rates(**settings: object) -> list[float]:
        return [group["lr"] for group in param_groups(Optim(lr=1e-3, **settings), trainable())]

    assert rates() == [1e-3, 5e-4]
    assert rates(text_lr=1e-5) == [1e-3, 1e-5]
    assert rates(name="prodigy") == [1e-3, 1e-3]
    assert len(param_groups(Optim(), Trainable(trainable().unet, []))) == 1


def test_an_optimizer_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdxl_ray.training.optim.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"adamw8bit needs bitsandbytes: pip install 'sdxl-ray\[adamw8bit\]'"):
        require_available(Optim(name="adamw8bit"), "cuda")
    require_available(Optim(), "cpu")
    monkeypatch.setattr("sdxl_ray.training.optim.find_spec", lambda _: object())
    with pytest.raises(UserError, match="adamw8bit needs a GPU"):
        require_available(Optim(name="adamw8bit"), "cpu")


def test_adamw_takes_the_step_of_its_paper() -> None:
    """Loshchilov and Hutter, arXiv 1711.05101: decay the weight, then step by the corrected moments."""
    held = trainable()
    optim = Optim(lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
    optimizer = build_optimizer(optim, held)
    expected = []
    for (_, p), lr in zip(held.named, (0.01, 0.01, 0.005), strict=True):
        p.grad = torch.full_like(p, 0.5)
        expected.append(p.detach() * (1 - lr * 0.1) - lr * 0.5 / (0.5 + 1e-3))
    optimizer.step()
    assert all(torch.allclose(p, want, atol=1e-6) for (_, p), want in zip(held.named, expected, strict=True))


@pytest.mark.parametrize("name", ["adafactor", "prodigy"])
def test_every_optimizer_moves_the_weights_and_resumes_bit_for_bit(train: Train, recipe: Recipe, name: str) -> None:
    if name == "prodigy":
        pytest.importorskip("prodigyopt")
    changes = {
        "optim.name": name,
        "optim.lr": 1.0 if name == "prodigy" else 1e-3,
        "optim.batch_size": 1,
        "checkpoint.every": 2,
        "tuning.use_dora": True,  # its magnitudes are vectors, which Adafactor keeps in another way than matrices
        "tuning.text_encoders": [1],
    }
    recipe = override(recipe, changes)
    straight = train(recipe, "straight")
    train(recipe, "killed", kill_at=3)
    again = train(recipe, "killed")
    assert again.summary["resumed_at"] == 2
    assert [again.losses[s].hex() for s in (3, 4)] == [straight.losses[s].hex() for s in (3, 4)]
    mine, theirs = straight.weights, again.weights
    assert all(torch.equal(w, theirs[n]) for n, w in mine.items())
    assert all(float(w.abs().max()) > 0 for n, w in mine.items() if "lora_B" in n)


def test_the_clip_sees_every_trained_weight(components: Components) -> None:
    tuning = LoraTuning(rank=2, text_encoders=(1,))
    denoiser = denoiser_of(components, tuning)
    held = TUNINGS[LoraTuning].prepare(denoiser, tuning, 0)
    engine = LocalEngine(
        denoiser, held, Optim(max_grad_norm=1.0), accumulation=2, device=torch.device("cpu"), precision=torch.float32
    )
    expected = sum(float(p.detach().square().sum()) for _, p in held.named) ** 0.5
    for half in range(2):
        # The gradient of half the sum of squares is the weight itself.
        engine.backward(sum((p.square().sum() for _, p in held.named), torch.zeros(())) / 2)
        assert engine.step() == (half == 1)
    assert engine.grad_norm() == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is None for _, p in held.named)


def test_a_step_does_not_wait_for_the_gradients_norm(components: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, float(tensor) waits for the device: the norm is read where it is logged."""
    tuning = LoraTuning(rank=2)
    denoiser = denoiser_of(components, tuning)
    held = TUNINGS[LoraTuning].prepare(denoiser, tuning, 0)
    engine = LocalEngine(denoiser, held, Optim(), accumulation=1, device=torch.device("cpu"), precision=torch.float32)
    engine.backward(sum((p.square().sum() for _, p in held.named), torch.zeros(())))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__float__", lambda _: pytest.fail("a tensor was read"))
        assert engine.step()
    assert engine.grad_norm() > 0


def test_the_average_follows_its_formula_and_gives_the_weights_back(components: Components) -> None:
    tuning = LoraTuning(rank=2)
    denoiser = denoiser_of(components, tuning)
    held = TUNINGS[LoraTuning].prepare(denoiser, tuning, 0)
    engine = LocalEngine(denoiser, held, Optim(), accumulation=1, device=torch.device("cpu"), precision=torch.float32)
    ema = Ema(engine, 0.3)
    weight = held.named[0][1]
    expected = weight.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            weight.add_(step)
        ema.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    assert torch.allclose(ema.averages[0], expected, atol=1e-4)
    before = copy.deepcopy([p.detach() for _, p in held.named])
    with pytest.raises(ZeroDivisionError), ema.swapped_in():
        assert torch.equal(weight, ema.averages[0])
        raise ZeroDivisionError
    assert all(torch.equal(a, p) for a, (_, p) in zip(before, held.named, strict=True))


@pytest.mark.parametrize("kind", [FullTuning(text_encoders=(2,)), LoraTuning(rank=2)], ids=["full", "lora"])
def test_half_precision_keeps_fp32_masters_where_it_trains(
    components: Components, kind: FullTuning | LoraTuning
) -> None:
    for model in (components.unet, *components.text_encoders):
        nn.Module.to(model, torch.bfloat16)
    denoiser = denoiser_of(components, kind)
    held = TUNINGS[type(kind)].prepare(denoiser, kind, 0)
    LocalEngine(denoiser, held, Optim(), accumulation=1, device=torch.device("cpu"), precision=torch.bfloat16)
    assert {p.dtype for _, p in held.named} == {torch.float32}
    frozen = {p.dtype for p in denoiser.parameters() if not p.requires_grad}
    assert frozen == (set() if isinstance(kind, FullTuning) else {torch.bfloat16})
