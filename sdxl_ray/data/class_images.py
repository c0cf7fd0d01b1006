"""Class (prior) images: drawn by the base on all ranks at once, kept, and used again by any run that asks for them.

The folder's name is a hash of what decides the images (base, precision, prompt, settings, size); image i has its
own seed. So raising `data.prior.num_class_images` draws only the missing ones, and an interrupted run
resumes where it stopped.
Source: DreamBooth's autogenous prior, arXiv 2208.12242, section 3.2.
"""

from __future__ import annotations

from pathlib import Path

from sdxl_ray.config.schema import Data
from sdxl_ray.data.dataset import ImageSet, class_folder
from sdxl_ray.data.tensor_cache import namespace
from sdxl_ray.io.atomic import whole_file
from sdxl_ray.io.collectives import Collectives, share
from sdxl_ray.io.file_exchange import exchange
from sdxl_ray.io.rows import OnProgress
from sdxl_ray.io.storage import Storage
from sdxl_ray.metrics.counted_random import counted
from sdxl_ray.models.base_model import Components
from sdxl_ray.models.pipeline import generate


def class_images(
    data: Data,
    given: int,
    components: Components,
    resolution: int,
    folder: Path,
    group: Collectives,
    progress: OnProgress,
    storage: Storage | None = None,
) -> ImageSet:
    """Collective. The `data.prior.num_class_images - given` generated class images; missing ones are drawn first.

    Every rank draws its share; `components` must be on this rank's device. `progress(done, total)` counts this rank's.
    """
    assert data.prior is not None
    prior = data.prior
    kind = namespace(
        "class",
        base=components.files.content,
        precision=str(components.unet.dtype),
        prompt=data.class_prompt,
        steps=prior.num_inference_steps,
        guidance=prior.guidance_scale,
        resolution=resolution,
        batch=prior.batch_size,
        **({} if data.max_token_length == 75 else {"max_token_length": data.max_token_length}),
    )
    home = folder / kind
    home.mkdir(parents=True, exist_ok=True)
    exchange(home, group, storage)
    wanted = max(0, prior.num_class_images - given)
    # Batches have a fixed make-up whatever is missing: an image's last bit depends on those drawn beside it.
    starts = [s for s in range(0, wanted, prior.batch_size) if not all(p.exists() for p in _batch(home, s, data))]
    mine = share(group.gather(starts)[0], group)
    pipeline = components.pipeline()
    for done, start in enumerate(mine, start=1):
        paths = _batch(home, start, data)
        images = generate(
            pipeline,
            [data.class_prompt] * len(paths),
            seeds=[int(counted(0, kind, start + i).integers(2**31)) for i in range(len(paths))],
            num_inference_steps=prior.num_inference_steps,
            guidance_scale=prior.guidance_scale,
            height=resolution,
            width=resolution,
            batch_size=prior.batch_size,
            max_token_length=data.max_token_length,
        )
        for path, image in zip(paths, images, strict=True):
            with whole_file(path, shared=True) as draft:  # runs share the folder
                image.save(draft, format="PNG")
        progress(done * prior.batch_size, len(mine) * prior.batch_size)
    exchange(home, group, storage)
    if not wanted:
        return ImageSet(())
    names = {f"{i:06d}.png" for i in range(wanted)}
    return ImageSet(p for p in class_folder(home, data.class_prompt) if Path(p.source).name in names)


def _batch(home: Path, start: int, data: Data) -> list[Path]:
    assert data.prior is not None
    return [home / f"{i:06d}.png" for i in range(start, start + data.prior.batch_size)]
