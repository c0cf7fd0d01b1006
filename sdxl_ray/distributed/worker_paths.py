"""The driver's paths on other nodes: where a worker finds them, and the check before anything starts that it does.

Nodes share most paths. Those below the driver's working directory may come with the job's package
(`ray job submit --working-dir .`), which each node unpacks into a folder of its own: there they are looked up below the
worker's working directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import Base
from sdxl_ray.data.dataset import DatasetImage, ImageSet
from sdxl_ray.distributed.nodes import alive, ask
from sdxl_ray.errors import UserError
from sdxl_ray.paths import working_directory
from sdxl_ray.training.trainer import Splits


def path_here(path: str, driver: str) -> str:
    """This node's path of a driver's path. driver: its working directory."""
    inside = path == driver or path.startswith(driver + os.sep)
    return path if not inside or Path(driver).is_dir() else working_directory() + path[len(driver) :]


def base_here(base: Base, driver: str) -> Base:
    """The base with the paths of this node."""
    moved = {setting: path_here(path, driver) for setting, path in base.local_paths.items()}
    return base.model_copy(update=moved)


def recipe_here(recipe: Recipe, driver: str) -> Recipe:
    """The recipe with the paths of this node."""
    moved = {setting: path_here(path, driver) for setting, path in recipe.local_paths.items()}
    return override(recipe, moved) if moved != recipe.local_paths else recipe


def image_here(image: DatasetImage, driver: str) -> DatasetImage:
    """An image with the path of this node."""
    return replace(image, source=path_here(image.source, driver))


def images_here(images: Splits, driver: str) -> Splits:
    """A run's images with the paths of this node."""

    def moved(one_set: ImageSet) -> ImageSet:
        return ImageSet(image_here(image, driver) for image in one_set)

    return Splits(moved(images.train), moved(images.held_out), moved(images.given_class))


def require_visible(paths: Mapping[str, str]) -> None:
    """Raise UserError, before anything starts, when a node that may run workers lacks one of these paths.

    paths: setting -> absolute path on this node. Nodes that offer neither CPUs nor GPUs run no workers.
    """
    nodes = [node for node in alive() if node.resources.get("CPU") or node.resources.get("GPU")]
    if not paths or len(alive()) < 2:
        return
    answers = ask(nodes, _lacking, list(paths.values()), working_directory())
    for setting, path in paths.items():
        blind = [node.label for node, lacking in answers.items() if isinstance(lacking, list) and path in lacking]
        if blind:
            raise UserError(
                f"{setting} = {path!r} is not on {len(blind)} of {len(nodes)} nodes that may run workers "
                f"({', '.join(blind[:4])}{', …' if len(blind) > 4 else ''}): put it on a folder that every node "
                "mounts, or below the folder that ray job submit --working-dir sends"
            )


def _lacking(paths: list[str], driver: str) -> list[str]:
    """Those of the driver's paths that this node has not."""
    return [path for path in paths if not Path(path_here(path, driver)).exists()]
