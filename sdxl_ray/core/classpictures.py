"""Class (prior) pictures: drawn by the base on all ranks at once, kept, and used again by any run that asks for the same.

The folder's name is a hash of what decides the pictures (base, prompt, settings, size); picture i has its own seed. So
raising `data.prior.count` draws only the missing ones, and an interrupted run goes on where it was.
Source: DreamBooth's autogenous prior, arXiv 2208.12242, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdxl_ray.config import Data
from sdxl_ray.core.bases import Components
from sdxl_ray.core.cache import namespace
from sdxl_ray.core.dataset import PictureSet, class_folder
from sdxl_ray.core.group import Group, share
from sdxl_ray.core.pipeline import generate
from sdxl_ray.core.sampler import counted

Progress = Callable[[int, int], None]


def class_pictures(
    data: Data, given: int, components: Components, resolution: int, folder: Path, group: Group, progress: Progress
) -> PictureSet:
    """Collective. The `data.prior.count - given` generated class pictures, after drawing those that are missing.

    Every rank draws its share; `components` must be on this rank's device. `progress(done, total)` counts this rank's.
    """
    assert data.prior is not None
    prior = data.prior
    kind = namespace(
        "class",
        base=components.files.content,
        prompt=data.class_prompt,
        steps=prior.num_inference_steps,
        guidance=prior.guidance_scale,
        resolution=resolution,
    )
    home = folder / kind
    home.mkdir(parents=True, exist_ok=True)
    names = [f"{i:06d}.png" for i in range(max(0, prior.count - given))]
    missing = [name for name in group.gather([n for n in names if not (home / n).exists()])[0]]
    mine = share(missing, group)
    pipeline = components.pipeline()
    for start in range(0, len(mine), prior.batch_size):
        part = mine[start : start + prior.batch_size]
        pictures = generate(
            pipeline,
            [data.class_prompt] * len(part),
            seeds=[int(counted(0, kind, int(name[:6])).integers(2**31)) for name in part],
            num_inference_steps=prior.num_inference_steps,
            guidance_scale=prior.guidance_scale,
            height=resolution,
            width=resolution,
            batch_size=prior.batch_size,
        )
        for name, picture in zip(part, pictures, strict=True):
            beside = home / f".{name}.{group.rank}"
            picture.save(beside, format="PNG")
            beside.rename(home / name)  # never a half-written picture under its name
        progress(start + len(part), len(mine))
    group.barrier()
    drawn = class_folder(home, data.class_prompt)
    wanted = set(names)
    return PictureSet(p for p in drawn if Path(p.source).name in wanted)
