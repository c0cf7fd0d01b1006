"""Which images a step sees and how they are cut: pure functions of (seed, step, index in the global batch).

No state walks from step to step, so a resumed run, another number of workers or more accumulation see the same
examples. A global batch has one bucket, and buckets occur as often as their images do. A view carries SDXL's
micro-conditioning of its own crop (arXiv 2307.01952, section 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdxl_ray.config.schema import Data
from sdxl_ray.data.buckets import Buckets, cover
from sdxl_ray.data.dataset import DatasetImage
from sdxl_ray.errors import UserError
from sdxl_ray.metrics.counted_random import counted


@dataclass(frozen=True, slots=True)
class View:
    """One way to cut an image: resize, then crop to the bucket, then mirror. All sizes are (height, width) pixels."""

    image: DatasetImage
    bucket: tuple[int, int]
    resize: tuple[int, int]
    crop: tuple[int, int]  # (top, left) in the resized image, before the mirror
    flip: bool

    @property
    def key(self) -> str:
        """The pixels' name, stable across runs: the image's content and the geometry; captions play no part."""
        (h, w), (resize_h, resize_w), (top, left) = self.bucket, self.resize, self.crop
        return f"{self.image.key}-{h}x{w}-{resize_h}x{resize_w}-{top},{left}{'-flip' if self.flip else ''}"

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """(original h, w before any resize; crop top, left as seen after the mirror; target h, w), in pixels."""
        top, left = self.crop
        if self.flip:
            left = self.resize[1] - self.bucket[1] - left
        return (self.image.height, self.image.width, top, left, *self.bucket)


@dataclass(frozen=True, slots=True)
class Example:
    """One member of a global batch."""

    view: View
    caption: str
    dropped: bool  # caption dropout: the model sees the empty prompt instead of `caption`
    weight: float  # of its loss
    index: int  # in the global batch: instance images first, then class images


def render(image: Image.Image, view: View) -> Image.Image:
    """The view's pixels (RGB, bucket size) from its upright image.

    The crop alone is resized (with the pixels around it that the filter needs): an 8 x 12000 image, enlarged whole,
    would take gigabytes.
    """
    assert image.size == (view.image.width, view.image.height), (image.size, view.image)
    (h, w), (resize_h, resize_w), (top, left) = view.bucket, view.resize, view.crop
    x, y = image.width / resize_w, image.height / resize_h
    box = (left * x, top * y, min((left + w) * x, image.width), min((top + h) * y, image.height))
    cropped = image.resize((w, h), Image.Resampling.LANCZOS, box=box)
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else cropped


class BatchSampler:
    """The examples of any step.

    Step s takes the bucket of the image at position s of an endless stream of shuffled instance images. The k-th
    step of a bucket takes images [k * batch_size, (k + 1) * batch_size) of the bucket's own stream, so over
    len(instances) steps each image is seen exactly batch_size times, whatever the buckets. Class images
    (round(batch_size * data.prior.ratio), at least one) come from a stream of their own, cut to the step's bucket.
    """

    def __init__(
        self,
        instances: Iterable[DatasetImage],
        class_images: Iterable[DatasetImage],
        data: Data,
        *,
        resolution: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """`resolution` in pixels; `batch_size` counts instance images over all workers.

        Raises UserError: nothing to train on, a prior without class images, an impossible resolution.
        """
        self._instances = _in_order(instances)
        self._classes = _in_order(class_images) if data.prior else ()
        if not self._instances:
            raise UserError("no instance images to train on: add images to data.images or lower data.holdout")
        if data.prior and not self._classes:
            raise UserError("data.prior is set and there are no class images: generate them, or give data.prior.images")
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.class_count = max(1, math.floor(batch_size * data.prior.ratio + 0.5)) if data.prior else 0
        self._weights = _weights(data, batch_size, self.class_count)
        self._buckets = Buckets(resolution, data.buckets)
        shapes = [self._buckets.bucket(image.width, image.height) for image in self._instances]
        present = set(shapes)
        #: Buckets that instance images have, in table order.
        self.buckets = tuple(shape for shape in self._buckets.table if shape in present)
        self._bucket_of = np.array([self.buckets.index(shape) for shape in shapes])
        self._members = [np.flatnonzero(self._bucket_of == number) for number in range(len(self.buckets))]

    def __len__(self) -> int:
        """Examples in a global batch, class images included."""
        return self.batch_size + self.class_count

    def batch(self, step: int) -> list[Example]:
        """The global batch of a step (from 0), by index; every view has the same bucket."""
        number, use = self._bucket_at(step)
        members, stream = self._members[number], f"bucket {self.buckets[number]}"
        positions = range(use * self.batch_size, (use + 1) * self.batch_size)
        instances = [self._instances[members[_at(self.seed, stream, at, len(members))]] for at in positions]
        positions = range(step * self.class_count, (step + 1) * self.class_count)
        classes = [self._classes[_at(self.seed, "class", at, len(self._classes))] for at in positions]
        return [self._example(image, number, step, index) for index, image in enumerate(instances + classes)]

    def views(self) -> Iterator[View]:
        """Every view that any step can have, each key once: instances in their bucket, class images in all."""
        for image in _distinct(self._instances):
            yield from self._views(image, self._buckets.bucket(image.width, image.height))
        for image in _distinct(self._classes):
            for bucket in self.buckets:
                yield from self._views(image, bucket)

    def captions(self) -> list[str]:
        """Every caption that any step can have, sorted; the empty one is among them when captions can be dropped."""
        empty = {""} if self.data.caption_dropout > 0 else set()
        return sorted(empty | {image.caption for image in (*self._instances, *self._classes)})

    def _bucket_at(self, step: int) -> tuple[int, int]:
        """(number of the step's bucket, how many steps before this one had it), without going through the steps."""
        epoch, position = divmod(step, len(self._instances))
        passed = self._bucket_of[_permutation(self.seed, "order", epoch, len(self._instances))[: position + 1]]
        number = int(passed[-1])
        return number, epoch * len(self._members[number]) + int(np.count_nonzero(passed == number)) - 1

    def _example(self, image: DatasetImage, number: int, step: int, index: int) -> Example:
        draws = counted(self.seed, "augment", step, index).random(
            3
        )  # always all three: one setting moves no other draw
        instance = image.role == "instance"
        variants = _crops(image, self.buckets[number], self.data)
        view = _view(
            image,
            self.buckets[number],
            variants[int(draws[0] * len(variants))],
            flip=self.data.flip and bool(draws[1] < 0.5),
        )
        dropped = instance and bool(draws[2] < self.data.caption_dropout)
        weight = self._weights[0 if instance else 1]
        return Example(view, image.caption, dropped, weight, index)

    def _views(self, image: DatasetImage, bucket: tuple[int, int]) -> Iterator[View]:
        for crop in dict.fromkeys(_crops(image, bucket, self.data)):
            for flip in (False, True) if self.data.flip else (False,):
                yield _view(image, bucket, crop, flip=flip)


def validation_examples(images: Iterable[DatasetImage], data: Data, resolution: int) -> list[Example]:
    """Held-out images as they are always seen: in content order, centre crop, no mirror, no dropout, weight 1."""
    buckets = Buckets(resolution, data.buckets)
    centred = data.model_copy(update={"crop": "center"})
    examples = []
    for index, image in enumerate(_in_order(images)):
        bucket = buckets.bucket(image.width, image.height)
        view = _view(image, bucket, _crops(image, bucket, centred)[0], flip=False)
        examples.append(Example(view, image.caption, False, 1.0, index))
    return examples


def _weights(data: Data, instances: int, classes: int) -> tuple[float, float]:
    """Loss weights of an instance and of a class image, so that the mean over the global batch is the paper's loss:

    mean(instance) + lambda x mean(class), for any number of each (arXiv 2208.12242, equation 2).
    """
    if data.prior is None:
        return 1.0, 0.0
    total = instances + classes
    return total / instances, data.prior.prior_loss_weight * total / classes


def _in_order(images: Iterable[DatasetImage]) -> tuple[DatasetImage, ...]:
    # By content: neither file names nor the order in which workers report change a run.
    return tuple(sorted(images, key=lambda image: (image.key, image.caption)))


def _distinct(images: tuple[DatasetImage, ...]) -> Iterator[DatasetImage]:
    """One of each content: an image with two captions stands twice, side by side, and has the same views."""
    return (next(same) for _, same in groupby(images, key=lambda image: image.key))


def _view(image: DatasetImage, bucket: tuple[int, int], crop: tuple[int, int], *, flip: bool) -> View:
    return View(image, bucket, cover(image.width, image.height, bucket), crop, flip)


def _crops(image: DatasetImage, bucket: tuple[int, int], data: Data) -> list[tuple[int, int]]:
    """The (top, left) corners that an image has in a bucket; from its content, so that the few can be cached.

    Random corners are stratified: variant v lies in the v-th part of the room, so even two differ visibly.
    """
    resize_h, resize_w = cover(image.width, image.height, bucket)
    room_h, room_w = resize_h - bucket[0], resize_w - bucket[1]
    if data.crop == "center":
        return [(room_h // 2, room_w // 2)]
    count = data.crop_variants
    shares = (np.arange(count) + counted(int(image.key[:16], 16), "crop", *bucket).random(count)) / count
    return [(int(share * (room_h + 1)), int(share * (room_w + 1))) for share in shares]


def _at(seed: int, stream: str, position: int, length: int) -> int:
    """Element `position` of an endless stream of shuffles of range(length)."""
    epoch, place = divmod(position, length)
    return int(_permutation(seed, stream, epoch, length)[place])


@lru_cache(maxsize=64)
def _permutation(seed: int, stream: str, epoch: int, length: int) -> NDArray[np.int64]:
    return counted(seed, stream, epoch).permutation(length)
