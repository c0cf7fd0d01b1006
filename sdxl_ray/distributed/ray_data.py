"""Large sets through Ray Data: images are read, checked and encoded block by block, on all nodes at once.

What comes back to the driver is one small row per image; pixels and latents never pass through it. The training
loop then reads the cached latents by key, a row group at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdxl_ray.config.recipe import Recipe, parse
from sdxl_ray.data.batch_sampler import BatchSampler, View, validation_examples
from sdxl_ray.data.dataset import DatasetImage, ImageSet, image_row, instance_entries
from sdxl_ray.data.image_io import BadImage
from sdxl_ray.data.image_sources import ImageEntry, Reader
from sdxl_ray.distributed.worker_paths import image_here, path_here, recipe_here
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.rows import OnRow
from sdxl_ray.io.storage import Storage
from sdxl_ray.paths import working_directory
from sdxl_ray.training.run_directory import RunFolder, divided
from sdxl_ray.training.trainer import Splits

#: Above this many images `data.stream=auto` goes through Ray Data.
MANY = 2_000
_AT_ONCE = 16
_NAMED = 10


def streams(recipe: Recipe) -> bool:
    """Whether the recipe's images go through Ray Data: `data.stream`, or by their number and kind."""
    if recipe.data.stream != "auto":
        return recipe.data.stream == "always"
    assert recipe.data.images is not None
    where = Path(recipe.data.images)
    return where.suffix.lower() == ".parquet" or (where.is_dir() and len(_entries(recipe)) > MANY)


def scan_stream(recipe: Recipe, on_row: OnRow) -> Splits:
    """Read and check every image on the cluster's nodes; the driver gets their rows.

    Raises UserError that names the first images which cannot be used.
    """
    import ray.data

    _quiet()
    found = _entries(recipe)
    images: list[DatasetImage] = []
    problems: list[str] = []
    rows = ray.data.from_items([asdict(entry) for entry in found], override_num_blocks=_blocks(len(found)))
    probed = rows.map_batches(_probe, fn_args=(working_directory(),), batch_size=_AT_ONCE)
    for n, row in enumerate(probed.iter_rows(), start=1):
        problem = row.pop("problem")
        if problem:
            problems.append(problem)
        else:
            images.append(DatasetImage(**row))
        if n % 100 == 0 or n == len(found):
            on_row({"kind": "phase", "name": "reading images", "done": n, "total": len(found)})
    if problems:
        more = f" (and {len(problems) - 1} more: {'; '.join(problems[1:_NAMED])})" if problems[1:] else ""
        raise UserError(f"{problems[0]}{more}")
    images.sort(key=lambda image: (image.key, image.caption))
    return divided(ImageSet.from_rows(asdict(image) for image in images), recipe)


def encode_stream(recipe: Recipe, run: RunFolder, storage: Storage, gpus: int, on_row: OnRow) -> None:
    """Fill the latents cache with every view that the cache lacks, by one actor per worker."""
    if not recipe.data.cache_latents:
        return
    import ray.data

    _quiet()
    encoder_of = {
        "recipe": recipe.model_dump(mode="json"),
        "storage": storage.url or str(storage.root),
        "driver": working_directory(),
    }
    views = list(_views(recipe, run))
    workers = recipe.parallel.workers[1]
    rows = ray.data.from_items([{"view": asdict(view)} for view in views], override_num_blocks=_blocks(len(views)))
    encoded = rows.map_batches(
        EncodeViews,
        fn_constructor_kwargs=encoder_of,
        batch_size=_AT_ONCE,
        concurrency=workers,
        num_cpus=recipe.resources.cpus_per_worker,
        num_gpus=gpus,
    )
    done = 0
    for row in encoded.iter_rows():
        if row["problem"]:
            raise RunError(row["problem"])
        done += int(row["encoded"])
        on_row({"kind": "phase", "name": "caching images", "done": done, "total": len(views)})


class EncodeViews:
    """A Ray Data actor: encodes batches of views into the cache; gives how many it saw, and what a store said."""

    def __init__(self, recipe: dict[str, Any], storage: str, driver: str) -> None:
        from sdxl_ray.models.base_model import load_vae, locate
        from sdxl_ray.training.local import default_device
        from sdxl_ray.training.trainer import latent_source

        self._recipe = recipe_here(parse(recipe), driver)
        files = locate(self._recipe.base)
        vae = load_vae(files, self._recipe.base, device=default_device())
        self._images = ImageSet(())
        self._storage = Storage.of(storage)
        cache = self._storage.root / "cache"
        self._source = latent_source(
            self._recipe, vae, files.content, lambda view: self._images.read(image_here(view.image, driver)), cache
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        views = [_view(plain) for plain in batch["view"]]
        missing = self._source.missing(views)
        if missing:
            self._source.fill(missing)
            if self._storage.url is not None and self._source.folder is not None:
                try:
                    self._storage.put_missing(self._source.folder)
                except RunError as error:  # raised, it would be tried again, and come back with Ray Data's tracebacks
                    return {"encoded": [len(views)], "problem": [str(error)]}
        return {"encoded": [len(views)], "problem": [""]}


def _entries(recipe: Recipe) -> list[ImageEntry]:
    assert recipe.data.images is not None
    return instance_entries(recipe.data, recipe.data.images, "data.images")


def _probe(batch: dict[str, Any], driver: str) -> dict[str, list[Any]]:
    """Rows of a batch of entries: the image's, or an empty one with its problem."""
    reader = Reader()
    rows = []
    for source, caption in zip(batch["source"], batch["caption"], strict=True):
        try:
            image = image_row(str(source), reader.read(path_here(str(source), driver)), str(caption))
            rows.append(asdict(image) | {"problem": ""})
        except BadImage as problem:
            empty = DatasetImage("", str(source), "", 0, 0, "instance")
            rows.append(asdict(empty) | {"problem": str(problem)})
    return {name: [row[name] for row in rows] for name in rows[0]}


def _views(recipe: Recipe, run: RunFolder) -> Iterable[View]:
    """Every view of the instance and held-out images; class images do not exist yet."""
    from sdxl_ray.models.base_model_files import locate
    from sdxl_ray.training.preflight import base_resolution

    resolution = base_resolution(recipe, locate(recipe.base))
    images = run.images()
    alone = recipe.data.model_copy(update={"prior": None})
    sampler = BatchSampler(
        images.train, (), alone, resolution=resolution, batch_size=recipe.optim.batch_size, seed=recipe.seed
    )
    held_out: Iterator[View] = (e.view for e in validation_examples(images.held_out, recipe.data, resolution))
    return dict.fromkeys((*sampler.views(), *held_out))


def _view(plain: dict[str, Any]) -> View:
    def pair(name: str) -> tuple[int, int]:
        return int(plain[name][0]), int(plain[name][1])

    return View(DatasetImage(**plain["image"]), pair("bucket"), pair("resize"), pair("crop"), bool(plain["flip"]))


def _blocks(rows: int) -> int:
    return max(1, min(200, rows // _AT_ONCE))


def _quiet() -> None:
    """Ray Data's own bars would write over the run's display."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
