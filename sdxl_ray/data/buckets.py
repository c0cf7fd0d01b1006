"""Aspect-ratio buckets: the few shapes, all of nearly the same area, that images are cropped to (arXiv 2307.01952).

SDXL's paper lists 64-pixel steps up to 4:1. The table here stops at 2.1:1: cameras and screens make 1:1 to 2:1, each
further shape would cost a compiled graph and a batch of its own for an image or two, and a panorama cropped to 2:1
still states its crop through micro-conditioning. Areas are rounded down, never up, so no bucket needs more memory than
the square that `plan` counts with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sdxl_ray.errors import UserError

MAX_ASPECT = 2.1  # 704 x 1472, the bucket of 2:1 at 1024 pixels, is 2.09


@dataclass(frozen=True)
class Buckets:
    """The table of one resolution (pixels of the square's side).

    Sides are multiples of 64 from 512 pixels on, else of 8 (one latent); `aspects=False` leaves the square alone.
    Raises UserError when the resolution is not such a multiple.
    """

    resolution: int
    aspects: bool = True
    #: (height, width) in pixels, from tallest to widest
    table: tuple[tuple[int, int], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        step = 64 if self.resolution >= 512 else 8
        if self.resolution < step or self.resolution % step:
            fix = max(step, round(self.resolution / step) * step)
            raise UserError(f"data.resolution {self.resolution} is not a multiple of {step}: use {fix}")
        object.__setattr__(self, "table", _table(self.resolution, step, self.aspects))

    def bucket(self, width: int, height: int) -> tuple[int, int]:
        """The (height, width) whose aspect ratio is nearest, by the ratio of ratios."""
        aspect = math.log(width / height)
        return min(self.table, key=lambda hw: (abs(math.log(hw[1] / hw[0]) - aspect), hw))


def cover(width: int, height: int, bucket: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the image resized to just cover the bucket; smaller images are enlarged."""
    bucket_h, bucket_w = bucket
    scale = max(bucket_h / height, bucket_w / width)
    return max(bucket_h, round(height * scale)), max(bucket_w, round(width * scale))


def _table(resolution: int, step: int, aspects: bool) -> tuple[tuple[int, int], ...]:
    table = {(resolution, resolution)}
    for short in range(step, resolution, step) if aspects else ():
        long = resolution**2 // short // step * step
        if long <= MAX_ASPECT * short:
            table |= {(short, long), (long, short)}
    return tuple(sorted(table, key=lambda hw: (hw[1] / hw[0], hw)))
