"""Any step's examples from (seed, step, index) alone: reproducible, proportional, each with its own conditioning."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdxl_ray.config.schema import Data, Prior
from sdxl_ray.data.batch_sampler import BatchSampler, View, render, validation_examples
from sdxl_ray.data.dataset import DatasetImage, Role
from sdxl_ray.errors import UserError
from sdxl_ray.metrics.counted_random import counted


def image(
    number: int, width: int = 1000, height: int = 1000, role: Role = "instance", caption: str = ""
) -> DatasetImage:
    key = hashlib.sha256(f"{role}{number}".encode()).hexdigest()
    return DatasetImage(key, f"{number}.png", caption or f"{role} {number}", width, height, role)


SQUARE, WIDE, TALL = (1000, 1000), (1500, 1000), (900, 1200)
MIXED = [image(n, *size) for n, size in enumerate([SQUARE] * 3 + [WIDE] * 2 + [TALL])]
CLASSES = [image(n, 1024, 1024, "class") for n in range(5)]
BUSY: dict[str, Any] = {"crop": "random", "flip": True, "caption_dropout": 0.3}


def sampler(
    instances: list[DatasetImage] = MIXED, batch_size: int = 4, seed: int = 7, prior: bool = True, **data: Any
) -> BatchSampler:
    settings = Data(class_name="dog", prior=Prior(ratio=0.75, prior_loss_weight=0.5) if prior else None, **data)
    return BatchSampler(instances, CLASSES, settings, resolution=512, batch_size=batch_size, seed=seed)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    steps = [0, 1, 5, 6, 13, 200]
    forward = {step: sampler(**BUSY).batch(step) for step in steps}
    one = sampler(list(reversed(MIXED)), **BUSY)  # neither the order of steps nor of files plays a part
    for step in reversed(steps):
        assert one.batch(step) == forward[step]
    assert sampler(seed=8, **BUSY).batch(5) != forward[5]


def test_another_process_draws_the_same() -> None:
    code = (
        "import hashlib; from sdxl_ray.metrics.counted_random import counted; "
        "print(counted(3, 'noise', 4, 5).integers(2**62), counted(3, 'noise', 4, 5).permutation(9).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split(maxsplit=1)[0] == str(counted(3, "noise", 4, 5).integers(2**62))
    # Written down: a change of these draws is a change of every run.
    assert counted(0, "order", 0).permutation(8).tolist() == [3, 4, 5, 7, 0, 6, 1, 2]


def test_counted_draws_depend_on_every_argument() -> None:
    base = counted(1, "a", 2, 3).random()
    assert base == counted(np.int64(1), "a", np.int64(2), 3).random()  # type: ignore[arg-type]  # as NumPy hands them
    others = [(2, "a", 2, 3), (1, "b", 2, 3), (1, "a", 3, 2), (1, "a", 2), (1, "a", 23), (1, "a", 2, 3, 0)]
    assert base not in {counted(*arguments).random() for arguments in others}


def test_the_long_way_round_gives_the_same_batches() -> None:
    """The closed form against a plain walk over the steps."""
    one = sampler(batch_size=4, prior=False)
    uses: Counter[tuple[int, int]] = Counter()
    streams: dict[tuple[int, int], list[str]] = {}
    for step in range(60):
        batch = one.batch(step)
        bucket = batch[0].view.bucket
        streams.setdefault(bucket, []).extend(example.view.image.key for example in batch)
        uses[bucket] += 1
    members = Counter(view.bucket for view in one.views())
    for bucket, keys in streams.items():
        size = members[bucket]
        assert uses[bucket] == 60 * size // len(MIXED)
        for start in range(0, len(keys) - size + 1, size):  # one shuffle after another, none broken at a batch
            assert len(set(keys[start : start + size])) == size
    three = next(keys for bucket, keys in streams.items() if members[bucket] == 3)
    shuffles = {tuple(three[at : at + 3]) for at in range(0, len(three), 3)}
    assert len(shuffles) == 6  # forty of them: the stream goes on from epoch to epoch, it does not start again


def test_batches_have_one_bucket_and_see_images_equally() -> None:
    one = sampler(batch_size=4)
    seen: Counter[str] = Counter()
    for step in range(len(MIXED)):
        batch = one.batch(step)
        assert [example.index for example in batch] == list(range(len(one))) == list(range(7))
        assert len({example.view.bucket for example in batch}) == 1
        assert [example.view.image.role for example in batch] == ["instance"] * 4 + ["class"] * 3
        assert [example.weight for example in batch] == [7 / 4] * 4 + [0.5 * 7 / 3] * 3
        seen.update(example.view.image.key for example in batch[:4])
    assert set(seen.values()) == {4}
    assert len(seen) == len(MIXED)


def test_class_images_are_seen_in_turn_with_their_own_conditioning() -> None:
    one = sampler(batch_size=4)
    drawn = [example for step in range(5) for example in one.batch(step)[4:]]
    assert set(Counter(example.view.image.key for example in drawn).values()) == {3}
    for example in drawn:
        assert example.view.time_ids[:2] == (1024, 1024)
        assert example.view.time_ids[4:] == example.view.bucket


@pytest.mark.parametrize(
    ("ratio", "batch_size", "count"), [(1.0, 4, 4), (0.01, 4, 1), (0.5, 3, 2), (2.0, 1, 2), (0.5, 5, 3)]
)
def test_class_images_in_a_batch(ratio: float, batch_size: int, count: int) -> None:
    data = Data(class_name="dog", prior=Prior(ratio=ratio))
    one = BatchSampler(MIXED, CLASSES, data, resolution=64, batch_size=batch_size, seed=0)
    assert len(one.batch(3)) == len(one) == batch_size + count


def test_nothing_to_sample_is_refused() -> None:
    with pytest.raises(UserError, match="no instance images"):
        sampler([])
    with pytest.raises(UserError, match="no class images"):
        BatchSampler(MIXED, [], Data(class_name="dog", prior=Prior()), resolution=64, batch_size=1, seed=0)
    assert len(BatchSampler(MIXED, CLASSES, Data(), resolution=64, batch_size=2, seed=0).batch(0)) == 2


@pytest.mark.parametrize("settings", [{}, {"flip": True}, {"crop": "random"}, BUSY, {**BUSY, "buckets": False}])
def test_views_and_captions_are_all_there_is(settings: dict[str, Any]) -> None:
    one = sampler(**settings)
    views = list(one.views())
    assert len({view.key for view in views}) == len(views)
    drawn = [example for step in range(300) for example in one.batch(step)]
    assert {example.view for example in drawn} <= set(views)
    assert {example.caption for example in drawn} <= set(one.captions())
    assert ("" in one.captions()) == ("caption_dropout" in settings)
    if settings.get("crop") != "random":  # few enough that all of them have come up
        assert {example.view for example in drawn} == set(views)
    per_image = Counter((view.image.key, view.bucket) for view in views)
    limit = (4 if settings.get("crop") == "random" else 1) * (2 if settings.get("flip") else 1)
    assert max(per_image.values()) <= limit


def test_two_captions_of_one_image_share_its_views() -> None:
    twins = [image(0, caption="one"), image(0, caption="two")]
    one = sampler(twins, prior=False)
    assert len(list(one.views())) == 1
    assert one.captions() == ["one", "two"]


def test_random_draws_have_their_shares() -> None:
    one = sampler(batch_size=8, **BUSY)
    drawn = [example for step in range(250) for example in one.batch(step)]
    instances = [example for example in drawn if example.view.image.role == "instance"]
    assert not any(example.dropped for example in drawn if example.view.image.role == "class")
    assert 0.26 < np.mean([example.dropped for example in instances]) < 0.34
    assert 0.46 < np.mean([example.view.flip for example in drawn]) < 0.54
    wide = [view for view in one.views() if view.image.width == 1500 and not view.flip]
    assert len({view.crop for view in wide if view.image == wide[0].image}) == 4


def test_members_of_a_batch_draw_apart() -> None:
    flips = [tuple(example.view.flip for example in sampler(batch_size=8, flip=True).batch(step)) for step in range(8)]
    assert len(set(flips)) == 8
    assert all(0 < sum(of_batch) < len(of_batch) for of_batch in flips)


def test_one_setting_moves_no_other_draw() -> None:
    busy, unflipped = sampler(**BUSY), sampler(**{**BUSY, "flip": False})
    for step in range(20):
        for a, b in zip(busy.batch(step), unflipped.batch(step), strict=True):
            assert (a.view.crop, a.dropped, a.view.image) == (b.view.crop, b.dropped, b.view.image)


def test_time_ids_follow_the_mirror() -> None:
    view = View(image(0, 1500, 1000), (512, 512), (512, 768), (0, 40), False)
    assert view.time_ids == (1000, 1500, 0, 40, 512, 512)
    assert View(view.image, view.bucket, view.resize, view.crop, True).time_ids == (
        1000,
        1500,
        0,
        768 - 512 - 40,
        512,
        512,
    )
    assert View(view.image, view.bucket, view.resize, view.crop, True).key == view.key + "-flip"


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 300), st.integers(8, 300), st.sampled_from(["center", "random"]), st.integers(0, 50))
def test_every_view_lies_inside_its_image(width: int, height: int, crop: str, number: int) -> None:
    data = Data(crop=crop, flip=True)
    one = BatchSampler([image(number, width, height)], [], data, resolution=64, batch_size=1, seed=0)
    pixels = Image.new("RGB", (width, height), (200, 100, 50))
    for view in one.views():
        rendered = render(pixels, view)
        assert rendered.size == (view.bucket[1], view.bucket[0])
        assert rendered.getextrema() == ((200, 200), (100, 100), (50, 50))  # nothing from outside the image
        assert min(view.time_ids) >= 0


@pytest.mark.parametrize("size", [(100, 100), (150, 100), (100, 60), (300, 77), (2000, 100), (50, 900)])
def test_a_crop_is_that_of_the_whole_image_resized(size: tuple[int, int]) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    pixels = Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)
    one = BatchSampler([image(0, *size)], [], Data(crop="random"), resolution=128, batch_size=1, seed=0)
    for view in one.views():
        (h, w), (top, left) = view.bucket, view.crop
        whole = pixels.resize(view.resize[::-1], Image.Resampling.LANCZOS).crop((left, top, left + w, top + h))
        off = np.abs(np.asarray(render(pixels, view)).astype(int) - np.asarray(whole))
        assert off.max() <= 2  # of 255: PIL keeps a box in single precision
        assert view.resize != view.bucket or off.max() == 0


def test_a_thin_image_is_rendered_without_its_rest() -> None:
    """Enlarged whole, 8 x 12000 pixels would be 704 x 1,056,000: 2 GiB, and half a minute."""
    one = BatchSampler([image(0, 8, 12_000)], [], Data(), resolution=1024, batch_size=1, seed=0)
    (view,) = one.views()
    assert view.resize == (1_056_000, 704)
    began = time.process_time()
    rendered = render(Image.new("RGB", (8, 12_000), (9, 8, 7)), view)
    assert time.process_time() - began < 5
    assert rendered.getextrema() == ((9, 9), (8, 8), (7, 7))


def test_a_rendered_mirror_shows_what_its_conditioning_says() -> None:
    columns = np.tile(np.arange(96, dtype=np.uint8)[None, :, None], (64, 1, 3))
    wide = image(0, 96, 64)
    for flip in (False, True):
        view = View(wide, (64, 64), (64, 96), (0, 10), flip)
        pixels = np.asarray(render(Image.fromarray(columns), view))
        seen = columns[:, ::-1] if flip else columns
        left = view.time_ids[3]
        assert (pixels == seen[:, left : left + 64]).all()


def test_validation_examples_never_change() -> None:
    data = Data(**BUSY)
    examples = validation_examples(MIXED, data, 512)
    assert validation_examples(list(reversed(MIXED)), data, 512) == examples
    assert [example.index for example in examples] == list(range(6))
    assert not any(example.dropped or example.view.flip for example in examples)
    for view in (example.view for example in examples):
        assert abs(view.resize[1] - view.bucket[1] - 2 * view.crop[1]) <= 1
        assert abs(view.resize[0] - view.bucket[0] - 2 * view.crop[0]) <= 1


def test_a_late_step_costs_no_replay() -> None:
    one = sampler([image(n, *(SQUARE if n % 3 else WIDE)) for n in range(5_000)], prior=False)
    assert len(one.batch(10**9)) == 4


@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_the_loss_is_the_papers_for_any_ratio(ratio: float) -> None:
    """mean(instance) + lambda x mean(class), with losses that are known."""
    data = Data(class_name="dog", prior=Prior(ratio=ratio, prior_loss_weight=0.5))
    photos, others = [image(number) for number in range(4)], [image(number, role="class") for number in range(4)]
    sampler = BatchSampler(photos, others, data, resolution=64, batch_size=4, seed=0)
    batch = sampler.batch(0)
    losses = [1.0 + index for index in range(len(batch))]
    mean = sum(example.weight * loss for example, loss in zip(batch, losses, strict=True)) / len(batch)
    assert mean == pytest.approx(np.mean(losses[:4]) + 0.5 * np.mean(losses[4:]))
