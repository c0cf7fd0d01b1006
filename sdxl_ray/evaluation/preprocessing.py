"""Images as the pixels that an encoder takes, by the image processor that its folder names.

With torchvision, which nothing here may need, the image processors of transformers give other pixels: always PIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdxl_ray.errors import UserError
from sdxl_ray.models.weight_loading import loading


@dataclass(frozen=True)
class Preprocessing:
    """An image processor of transformers that brings every image to one size."""

    _processor: Any

    @classmethod
    def load(cls, folder: Path, where: str) -> Preprocessing:
        """Load the one of an encoder's folder. Raises UserError, naming `where`, if images would differ in size."""
        from transformers import AutoImageProcessor

        where = f"{where}: preprocessor_config.json"
        with loading(where, "copy it again"):
            processor = AutoImageProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
            made = cls(processor)
            resize, crop, normal = made._resize, made._crop, made._normal
            Image.Resampling(processor.resample)  # ValueError for a number that is none
        least = min(resize) if isinstance(resize, tuple) else resize
        if any(len(numbers) != 3 for numbers in normal.values()):
            raise UserError(f"{where} normalises {len(normal['mean'])} channels, images have 3")
        if not all(normal["std"]):
            raise UserError(f"{where} divides by zero: image_std has a 0")
        if (resize is None and crop is None) or (crop is not None and (least is None or max(crop) > least)):
            raise UserError(f"{where} does not bring every image to one size")
        if isinstance(resize, int) and crop is None:
            raise UserError(f"{where} keeps each image's proportions: it needs a crop_size")
        return made

    def __call__(self, images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
        """fp32 [B, 3, H, W]."""
        pixels_BCHW: npt.NDArray[np.float32] = self._processor(
            [image.convert("RGB") for image in images], return_tensors="np"
        )["pixel_values"]
        return pixels_BCHW

    @property
    def text(self) -> str:
        """One line: `resize 224 bicubic, centre crop 224x224, mean 0.48 0.46 0.41, std 0.27 0.26 0.28`."""
        words, resize, scale = [], self._resize, self._processor.rescale_factor
        if resize is not None:
            edge = "x".join(map(str, resize)) if isinstance(resize, tuple) else f"shortest edge {resize}"
            words.append(f"resize {edge} {Image.Resampling(self._processor.resample).name.lower()}")
        if self._crop is not None:
            words.append(f"centre crop {'x'.join(map(str, self._crop))}")
        if not self._processor.do_rescale or scale != 1 / 255:
            words.append(f"scale {scale if self._processor.do_rescale else 1:.6g}")
        for name, numbers in self._normal.items():
            words.append(f"{name} {' '.join(f'{number:.4g}' for number in numbers)}")
        return ", ".join(words)

    @property
    def _resize(self) -> tuple[int, int] | int | None:
        """(height, width), or the shortest edge alone; None if images are not resized or their edges only bounded."""
        size = self._processor.size
        if not self._processor.do_resize:
            return None
        if size.height and size.width:
            return int(size.height), int(size.width)
        return int(size.shortest_edge) if size.shortest_edge and not size.longest_edge else None

    @property
    def _crop(self) -> tuple[int, int] | None:
        size = self._processor.crop_size
        return (int(size.height), int(size.width)) if self._processor.do_center_crop else None

    @property
    def _normal(self) -> dict[str, tuple[float, ...]]:
        """Mean and standard deviation of values in [0, 1], by channel."""
        if not self._processor.do_normalize:
            return {"mean": (0.0,) * 3, "std": (1.0,) * 3}
        mean, std = self._processor.image_mean, self._processor.image_std
        return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
