"""What a recipe already says about how its models are judged."""

from __future__ import annotations

from sdxl_ray.config import Recipe, override
from sdxl_ray.core.device import default_device, precision_on
from sdxl_ray.core.quality.drawing import Drawing
from sdxl_ray.core.quality.evaluate import Settings
from sdxl_ray.sections import MaxTokenLength


def settings_of(
    recipe: Recipe,
    *,
    precision: str = "auto",
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
    batch: int = 8,
    identity: str | None = None,
    clip: str | None = None,
    max_token_length: MaxTokenLength | None = None,
) -> Settings:
    """Drawn as the recipe's samples are, by encoders that fit its base; what is given wins."""
    device = default_device()
    looks = recipe.evaluation
    drawing = Drawing(
        num_inference_steps=steps or looks.num_inference_steps,
        guidance_scale=looks.guidance_scale if guidance is None else guidance,
        height=size,
        width=size,
        batch_size=batch,
        max_token_length=max_token_length,
    )
    tiny = recipe.base.id == "tiny"
    return Settings(
        drawing,
        identity=identity or ("tiny-identity" if tiny else "dinov2-base"),
        clip=clip or ("tiny-clip" if tiny else "clip-vit-b32"),
        dtype=precision_on(override(recipe, {"parallel.precision": precision}), device),
        device=device,
    )
