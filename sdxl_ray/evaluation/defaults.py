"""What a recipe already says about how its models are judged."""

from __future__ import annotations

from sdxl_ray.config.base_lineage import of_embedded_base
from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import MaxTokenLength
from sdxl_ray.evaluation.image_store import GenerationSettings
from sdxl_ray.evaluation.runner import EvaluationSettings
from sdxl_ray.models.device import default_device, precision_on


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
) -> EvaluationSettings:
    """Drawn as the recipe's samples are, by encoders that fit its base; what is given wins."""
    device = default_device()
    evaluation = recipe.evaluation
    drawing = GenerationSettings(
        num_inference_steps=steps or evaluation.num_inference_steps,
        guidance_scale=evaluation.guidance_scale if guidance is None else guidance,
        height=size,
        width=size,
        batch_size=batch,
        max_token_length=max_token_length,
    )
    tiny = of_embedded_base(recipe.base.id)
    return EvaluationSettings(
        drawing,
        identity=identity or ("tiny-identity" if tiny else "dinov2-base"),
        clip=clip or ("tiny-clip" if tiny else "clip-vit-b32"),
        dtype=precision_on(override(recipe, {"parallel.precision": precision}), device),
        device=device,
    )
