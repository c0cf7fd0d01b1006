"""From any image to an encoder's pixels, as its preprocessor_config.json says; PIL and NumPy only.

The image processors of transformers prefer torchvision, which nothing here may need, and give other pixels with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdxl_ray.errors import UserError

#: Processors whose lone `size` number is both edges; for the others it is the shortest edge.
_SQUARE = ("ViT", "Deit", "DeiT")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop in the middle, normalise. Edges are pixels.

    resize: (height, width), or the shortest edge alone, or None. mean, std: of values in [0, 1], by channel.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    resample: Image.Resampling
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> Preprocessing:
        """Read a preprocessor_config.json. Raises UserError, naming `where`, for one that this cannot follow."""
        kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        try:
            resize = _size(config.get("size"), kind) if config.get("do_resize", True) else None
            crop = _edges(config.get("crop_size")) if config.get("do_center_crop", False) else None
            normal = config.get("do_normalize", True)
            made = cls(
                resize=resize,
                crop=crop,
                resample=Image.Resampling(int(config.get("resample", 2))),
                scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
                mean=tuple(map(float, config["image_mean"])) if normal else (0.0,) * 3,
                std=tuple(map(float, config["image_std"])) if normal else (1.0,) * 3,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: preprocessor_config.json cannot be followed ({error}): copy it again") from None
        least = min(resize) if isinstance(resize, tuple) else resize
        if len(made.mean) != 3 or len(made.std) != 3 or not all(made.std):
            raise UserError(f"{where}: preprocessor_config.json normalises {len(made.mean)} channels, images have 3")
        if (resize is None and crop is None) or (crop is not None and (least is None or max(crop) > least)):
            raise UserError(f"{where}: preprocessor_config.json does not bring every image to one size")
        if isinstance(resize, int) and crop is None:
            raise UserError(f"{where}: preprocessor_config.json keeps each image's proportions: it needs a crop_size")
        return made

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """fp32 [3, H, W], the same H and W for every image."""
        image = image.convert("RGB")
        if self.resize is not None:
            image = image.resize(self._target(image), self.resample)
        if self.crop is not None:
            height, width = self.crop
            top, left = (image.height - height) // 2, (image.width - width) // 2
            image = image.crop((left, top, left + width, top + height))
        mean_3: npt.NDArray[np.float32] = np.array(self.mean, np.float32)
        std_3: npt.NDArray[np.float32] = np.array(self.std, np.float32)
        pixels_HWC = (np.asarray(image, np.float32) * np.float32(self.scale) - mean_3) / std_3
        return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))

    @property
    def text(self) -> str:
        """One line: `resize 224 bicubic, centre crop 224x224, mean 0.48 0.46 0.41, std 0.27 0.26 0.28`."""
        words = []
        if self.resize is not None:
            edge = "x".join(map(str, self.resize)) if isinstance(self.resize, tuple) else f"shortest edge {self.resize}"
            words.append(f"resize {edge} {self.resample.name.lower()}")
        if self.crop is not None:
            words.append(f"centre crop {'x'.join(map(str, self.crop))}")
        if self.scale != 1 / 255:
            words.append(f"scale {self.scale:.6g}")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            words.append(f"{name} {' '.join(f'{number:.4g}' for number in numbers)}")
        return ", ".join(words)

    def _target(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) after the resize; the long edge is rounded down, as transformers does."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        assert self.resize is not None
        long = int(self.resize * max(image.size) / min(image.size))
        return (self.resize, long) if image.width <= image.height else (long, self.resize)


def _size(value: Any, kind: str) -> tuple[int, int] | int:
    if isinstance(value, int):
        return (value, value) if kind.startswith(_SQUARE) else value
    if "shortest_edge" in value:
        return int(value["shortest_edge"])
    return _edges(value)


def _edges(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value["height"]), int(value["width"]))
