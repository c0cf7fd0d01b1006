"""What frozen parts say about images and words: computed once or every time, it is the same; and class images."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import Data, Prior
from sdxl_ray.data.class_images import class_images
from sdxl_ray.data.latents import encode_images, pixels, scale_latents
from sdxl_ray.errors import RunError
from sdxl_ray.io.collectives import SingleProcess
from sdxl_ray.models.base_model import Components
from tests.running import Outcome, Threads, Train, draw_images, on_ranks


def test_pixels_are_between_minus_one_and_one() -> None:
    values = np.array([[[0, 51, 255]]], dtype=np.uint8)
    expected = torch.tensor([-1.0, -0.6, 1.0]).view(3, 1, 1)
    assert torch.allclose(pixels(Image.fromarray(values)), expected)


def test_latents_are_scaled_as_the_config_says() -> None:
    raw_BCHW = torch.arange(16.0).view(1, 4, 2, 2)
    plain = SimpleNamespace(scaling_factor=0.5, latents_mean=None, latents_std=None, shift_factor=None)
    assert torch.equal(scale_latents(plain, raw_BCHW), raw_BCHW / 2)
    shifted = SimpleNamespace(scaling_factor=0.5, shift_factor=1.0)
    assert torch.equal(scale_latents(shifted, raw_BCHW), (raw_BCHW - 1) / 2)
    by_channel = SimpleNamespace(scaling_factor=0.5, latents_mean=[1.0, 2, 3, 4], latents_std=[1.0, 2, 4, 8])
    scaled = scale_latents(by_channel, raw_BCHW)
    assert scaled[0, :, 1, 1].tolist() == [(3 - 1) / 2, (7 - 2) / 4, (11 - 3) / 8, (15 - 4) / 16]


def test_a_vae_that_overflows_names_the_image(components: Components) -> None:
    images = [Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32), "white")]
    rows = encode_images(components.vae, images, ["black.png", "white.png"])
    assert {name: value.shape for name, value in rows[0].items()} == {"mean": (4, 8, 8), "std": (4, 8, 8)}
    assert not rows[0]["mean"].requires_grad
    # Break it for bright images only: the message must name the right one.
    components.vae.encoder.register_forward_pre_hook(
        lambda _, inputs: (torch.where(inputs[0].mean((1, 2, 3), keepdim=True) > 0, torch.nan, inputs[0]),)
    )
    with pytest.raises(RunError, match=r"NaN for white.png in torch.float32: it computes in fp32 already"):
        encode_images(components.vae, images, ["black.png", "white.png"])


def test_a_run_whose_vae_overflows_stops_before_the_first_step(
    train: Train, recipe: Recipe, tiny: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = copy.deepcopy(tiny.vae)
    broken.quant_conv.bias.data.fill_(torch.nan)
    monkeypatch.setattr(tiny, "vae", broken)
    for cached in (True, False):
        with pytest.raises(RunError, match=r"the VAE gives NaN for .*photos/\d.png"):
            train(override(recipe, {"data.cache_latents": cached}), f"run{cached}")


CROPS = {
    "data.crop": "random",
    "data.flip": True,
    "data.caption_dropout": 0.3,
    "optim.batch_size": 3,
    "optim.steps": 3,
}


def filled(run: Outcome) -> dict[str, int]:
    """What a run put into its caches: kind -> how many."""
    return {row["name"]: row["total"] for row in run.of("phase") if row["name"].startswith("caching")}


def test_cached_and_live_are_one_run_and_a_cache_is_filled_once(train: Train, recipe: Recipe) -> None:
    recipe = override(recipe, CROPS)
    cached = train(recipe, "cached")
    assert filled(cached).keys() == {"caching images", "caching captions"}
    again = train(recipe, "again")
    assert filled(again) == {}
    assert again.losses == cached.losses
    live = train(override(recipe, {"data.cache_latents": False, "data.cache_text": False}), "live")
    assert filled(live) == {}
    assert list(live.losses.values()) == pytest.approx(list(cached.losses.values()), rel=1e-5)
    # Another caption for the same images: only what is new is encoded.
    more = train(override(recipe, {"data.prompt": "an image of sks dog"}), "more")
    assert filled(more) == {"caching captions": 1}


def test_a_text_encoder_that_trains_is_fed_words_and_dropped_ones_are_zeros(train: Train, recipe: Recipe) -> None:
    """Before the first step, trained encoders say what frozen ones say: the first loss is the same."""
    recipe = override(recipe, {**CROPS, "optim.steps": 1})
    frozen, trained = (
        train(override(recipe, {"tuning": {"kind": "full", "text_encoders": which}}), f"run{len(which)}")
        for which in ([], [1, 2])
    )
    assert trained.losses[1] == pytest.approx(frozen.losses[1], rel=1e-6)
    dropout = [override(recipe, {"data.caption_dropout": share}) for share in (0.0, 1.0)]
    kept, dropped = (train(one, f"drop{i}") for i, one in enumerate(dropout))
    assert kept.losses[1] != dropped.losses[1]
    assert len({kept.losses[1], dropped.losses[1], frozen.losses[1]}) == 3


@pytest.fixture
def prior() -> Data:
    return Data(
        class_name="dog",
        prior=Prior(num_class_images=5, num_inference_steps=1, guidance_scale=1.0, batch_size=2),
    )


def seen(images: Any) -> dict[str, bytes]:
    return {Path(p.source).name: Path(p.source).read_bytes() for p in images}


def test_class_images_are_drawn_once_and_used_again(tmp_path: Path, tiny: Components, prior: Data) -> None:
    drawn: list[tuple[int, int]] = []

    def draw(data: Data, given: int = 0) -> dict[str, bytes]:
        return seen(
            class_images(
                data, given, tiny, 32, tmp_path, SingleProcess(), lambda done, total: drawn.append((done, total))
            )
        )

    first = draw(prior)
    assert sorted(first) == [f"{i:06d}.png" for i in range(5)]
    assert len(set(first.values())) == 5
    assert drawn == [(2, 6), (4, 6), (6, 6)]
    drawn.clear()
    assert draw(prior) == first
    assert draw(prior, given=3) == {name: first[name] for name in ("000000.png", "000001.png")}
    assert draw(prior, given=5) == {}
    assert drawn == []
    # An image that went missing is drawn again, the same; a killed painter's half image is not one.
    (home,) = tmp_path.iterdir()
    (home / "000002.png").unlink()
    (home / ".000003.png.0").write_bytes(b"half")
    assert draw(prior) == first
    assert drawn == [(2, 2)]
    drawn.clear()
    assert prior.prior is not None
    more = draw(prior.model_copy(update={"prior": prior.prior.model_copy(update={"num_class_images": 8})}))
    assert {name: more[name] for name in first} == first
    assert len(more) == 8
    assert drawn == [(2, 2)]  # the sixth was drawn with the fifth
    draw(prior.model_copy(update={"class_name": "cat"}))
    assert len(list(tmp_path.iterdir())) == 2


def test_class_images_do_not_depend_on_the_number_of_workers(tmp_path: Path, tiny: Components, prior: Data) -> None:
    alone = seen(class_images(prior, 0, tiny, 32, tmp_path / "alone", SingleProcess(), lambda *_: None))
    shares: list[int] = []

    def work(group: Threads) -> dict[str, bytes]:
        mine = copy.deepcopy(tiny)
        return seen(class_images(prior, 0, mine, 32, tmp_path / "two", group, lambda _, total: shares.append(total)))

    assert on_ranks(2, work) == [alone, alone]
    assert sorted(shares) == [2, 4, 4]


def test_a_prior_without_images_draws_them_and_weighs_them(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    given = draw_images(tmp_path / "given", [(40, 40), (50, 50)], 3)
    prior = {
        "images": str(given),
        "num_class_images": 3,
        "num_inference_steps": 1,
        "batch_size": 1,
        "prior_loss_weight": 0.25,
    }
    run = train(override(recipe, {"data.prior": prior, "optim.batch_size": 2, "optim.steps": 2}))
    assert [row["total"] for row in run.of("phase") if row["name"] == "drawing class images"] == [1]
    row = run.of("step")[0]
    losses = [loss for _, _, loss in row["examples"]]
    assert len(losses) == 4
    assert row["loss"] == pytest.approx((losses[0] + losses[1]) / 2 + 0.25 * (losses[2] + losses[3]) / 2)
