"""The forward process and the loss, against arithmetic done by hand, and randomness that is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from sdxl_ray.config.schema import Objective, TimestepBias
from sdxl_ray.errors import UserError
from sdxl_ray.models.losses import example_loss, timestep_weight
from sdxl_ray.models.noise_schedule import Diffusion, draw, scheduler_overrides, timestep_cdf

SDXL = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
KINDS = ("epsilon", "v_prediction", "sample")


def sdxl_alphas() -> np.ndarray:
    """The cumulative signal of SDXL's schedule: betas are the squares of an even ramp."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_target_and_snr_are_those_of_the_papers(kind: str) -> None:
    diffusion = Diffusion.of(SDXL, Objective(prediction=kind))
    x_BCHW, n_BCHW = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    t_B = torch.tensor([0, 500, 999])
    a = sdxl_alphas()[t_B.numpy()].reshape(3, 1, 1, 1)
    x, n = x_BCHW.numpy(), n_BCHW.numpy()
    expected = {"epsilon": n, "sample": x, "v_prediction": np.sqrt(a) * n - np.sqrt(1 - a) * x}[kind]
    noisy = np.sqrt(a) * x + np.sqrt(1 - a) * n
    np.testing.assert_allclose(diffusion.add_noise(x_BCHW, n_BCHW, t_B).numpy(), noisy, atol=2e-5)
    np.testing.assert_allclose(diffusion.target(x_BCHW, n_BCHW, t_B).numpy(), expected, atol=2e-5)
    np.testing.assert_allclose(diffusion.snr(t_B).numpy(), (a / (1 - a)).ravel(), rtol=1e-3)
    assert diffusion.steps == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_and_debiased_weights_follow_their_formulas(kind: str) -> None:
    t_B = torch.tensor([0, 100, 500, 999])
    a = sdxl_alphas()[t_B.numpy()]
    snr = a / (1 - a)
    scale = {"epsilon": snr, "v_prediction": snr + 1, "sample": np.ones(4)}[kind]

    def weight(**settings: object) -> np.ndarray:
        objective = Objective(prediction=kind, **settings)
        return timestep_weight(objective, Diffusion.of(SDXL, objective), t_B).numpy()

    np.testing.assert_allclose(weight(weighting="min_snr"), np.minimum(snr, 5) / scale, rtol=1e-3)
    np.testing.assert_allclose(weight(weighting="min_snr", snr_gamma=1.0), np.minimum(snr, 1) / scale, rtol=1e-3)
    np.testing.assert_allclose(weight(weighting="debiased"), np.sqrt(snr) / scale, rtol=1e-3)
    assert weight().tolist() == [1.0] * 4


def test_weights_make_the_three_predictions_one_loss() -> None:
    """A model that is wrong by d about the image has the same weighted loss whatever it predicts."""
    x_BCHW, n_BCHW, d_BCHW = torch.randn(3, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t_B, losses = torch.tensor([400]), []
    for kind in KINDS:
        objective = Objective(prediction=kind, weighting="min_snr")
        diffusion = Diffusion.of(SDXL, objective)
        a = diffusion.alphas_cumprod_T[400].double()
        noisy_BCHW = diffusion.add_noise(x_BCHW, n_BCHW, t_B)
        wrong_x = x_BCHW + d_BCHW
        wrong_n = (noisy_BCHW - a.sqrt() * wrong_x) / (1 - a).sqrt()
        prediction = diffusion.target(wrong_x, wrong_n, t_B)
        loss_B = example_loss(prediction, diffusion.target(x_BCHW, n_BCHW, t_B), objective)
        losses.append(float(loss_B * timestep_weight(objective, diffusion, t_B)))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_losses_are_means_over_each_example() -> None:
    prediction = torch.tensor([[[[1.0, 3.0]]], [[[0.05, 0.0]]]])
    target = torch.zeros(2, 1, 1, 2)
    assert example_loss(prediction, target, Objective()).tolist() == pytest.approx([5.0, 0.00125])
    # Huber: d (|x| - d / 2) outside, x^2 / 2 inside.
    expected = [(0.1 * 0.95 + 0.1 * 2.95) / 2, 0.00125 / 2]
    assert example_loss(prediction, target, Objective(loss="huber")).tolist() == pytest.approx(expected)
    half = example_loss(prediction.bfloat16(), target.bfloat16(), Objective())
    assert half.dtype == torch.float32


def test_zero_terminal_snr_has_no_signal_at_the_end_and_needs_v() -> None:
    diffusion = Diffusion.of(SDXL, Objective(prediction="v_prediction", zero_terminal_snr=True))
    assert float(diffusion.alphas_cumprod_T[-1]) == 0.0
    reference = DDPMScheduler(**SDXL, rescale_betas_zero_snr=True)
    assert torch.equal(diffusion.alphas_cumprod_T, reference.alphas_cumprod)
    assert float(Diffusion.of(SDXL, Objective()).alphas_cumprod_T[-1]) > 0.004
    t_B = torch.tensor([999])
    for weighting in ("min_snr", "debiased"):
        assert float(timestep_weight(Objective(weighting=weighting), diffusion, t_B)) == 0.0
    with pytest.raises(UserError, match="zero_terminal_snr needs v_prediction, this base predicts epsilon"):
        Diffusion.of(SDXL, Objective(zero_terminal_snr=True))
    own = {**SDXL, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert float(Diffusion.of(own, Objective()).alphas_cumprod_T[-1]) == 0.0
    with pytest.raises(UserError, match=r"set objective\.prediction=v_prediction"):
        Diffusion.of(own, Objective(prediction="epsilon"))


def test_a_base_of_another_diffusion_is_refused() -> None:
    for config in ({"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"}, {"prediction_type": "flow"}):
        with pytest.raises(UserError, match="is not one of SDXL's discrete diffusion"):
            Diffusion.of(config, Objective())


def test_what_a_pipeline_must_know_about_the_objective() -> None:
    assert scheduler_overrides(Objective().model_dump()) == {}
    assert scheduler_overrides(Objective(prediction="sample").model_dump()) == {"prediction_type": "sample"}
    zero = Objective(prediction="v_prediction", zero_terminal_snr=True).model_dump()
    assert scheduler_overrides(zero) == {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }


def test_draws_depend_on_seed_step_and_index_only() -> None:
    objective = Objective(noise_offset=0.1, timestep_bias=TimestepBias(begin=0.5, multiplier=3))
    noise_BCHW, t_B = draw(objective, 1000, 7, 3, [0, 1, 2, 3], (4, 4, 4))
    for indices in ([3], [2, 1], [3, 2, 1, 0]):
        other_BCHW, other_B = draw(objective, 1000, 7, 3, indices, (4, 4, 4))
        assert torch.equal(other_BCHW, noise_BCHW[indices])
        assert torch.equal(other_B, t_B[indices])
    for seed, step in ((8, 3), (7, 4)):
        assert not torch.equal(draw(objective, 1000, seed, step, [0], (4, 4, 4))[0], noise_BCHW[:1])
    before = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(draw(objective, 1000, 7, 3, [0], (4, 4, 4))[0], noise_BCHW[:1])
    torch.set_rng_state(before)


def test_noise_is_standard_and_its_offset_is_one_number_a_channel() -> None:
    indices = list(range(400))
    plain_BCHW, _ = draw(Objective(), 1000, 0, 0, indices, (4, 8, 8))
    offset_BCHW, _ = draw(Objective(noise_offset=0.5), 1000, 0, 0, indices, (4, 8, 8))
    assert abs(float(plain_BCHW.mean())) < 0.01
    assert float(plain_BCHW.std()) == pytest.approx(1, abs=0.01)
    difference_BCHW = offset_BCHW - plain_BCHW
    assert float(difference_BCHW.std(dim=(2, 3)).max()) < 1e-5
    assert float(difference_BCHW[:, :, 0, 0].std()) == pytest.approx(0.5, abs=0.03)


def test_timesteps_occur_as_often_as_their_bias_says() -> None:
    bias = TimestepBias(begin=0.25, end=0.5, multiplier=3)
    cdf = timestep_cdf(1000, bias)
    assert float(cdf[249]) == pytest.approx(250 / 1500)
    assert float(cdf[499]) == pytest.approx(1000 / 1500)
    _, flat_B = draw(Objective(), 1000, 0, 0, range(4000), (1, 1, 1))
    _, biased_B = draw(Objective(timestep_bias=bias), 1000, 0, 0, range(4000), (1, 1, 1))
    assert (int(flat_B.min()), int(flat_B.max())) == (0, 999)

    def share(t_B: torch.Tensor) -> float:
        return float(((t_B >= 250) & (t_B < 500)).float().mean())

    assert share(flat_B) == pytest.approx(0.25, abs=0.03)
    assert share(biased_B) == pytest.approx(0.5, abs=0.03)
    narrow = timestep_cdf(10, TimestepBias(begin=0.999, end=1.0, multiplier=11))
    assert float(narrow[8]) == pytest.approx(9 / 20)
