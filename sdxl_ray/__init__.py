"""Tune Stable Diffusion XL on Ray and prove what it bought: train, evaluate, search, serve, compare.

    import sdxl_ray

    recipe = sdxl_ray.override(sdxl_ray.load_recipe("tiny_lora"), {"data.images": "photos/dog", "optim.steps": 100})
    artifact = sdxl_ray.train(recipe, storage="runs", name="dog")
    images = sdxl_ray.generate(artifact, ["a photo of sks dog on the beach"], seed=1)

Every name is imported when it is first used, so `import sdxl_ray` takes milliseconds and loads no framework. All errors
that a user can cause are `UserError`; a run that fails is a `RunError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdxl_ray.api import compare, evaluate, extract, generate, load_pipeline, load_recipe, override, train, tune
    from sdxl_ray.errors import RunError, UserError
    from sdxl_ray.io.artifact import Artifact

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "RunError",
    "UserError",
    "compare",
    "evaluate",
    "extract",
    "generate",
    "load_pipeline",
    "load_recipe",
    "override",
    "train",
    "tune",
]
_ELSEWHERE = {"Artifact": "sdxl_ray.io.artifact", "RunError": "sdxl_ray.errors", "UserError": "sdxl_ray.errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sdxl_ray' has no attribute {name!r}")
    value = getattr(import_module(_ELSEWHERE.get(name, "sdxl_ray.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
