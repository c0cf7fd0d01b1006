"""What can be known to be wrong before anything starts: the base, the adapter targets, the schedule, the optimizer."""

from __future__ import annotations

from accelerate import init_empty_weights

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import LoraTuning
from sdxl_ray.models.adapters import TUNINGS
from sdxl_ray.models.base_model_files import BaseFiles, component_configs, locate
from sdxl_ray.models.denoiser import Denoiser
from sdxl_ray.models.initial_weights import require_initial
from sdxl_ray.models.noise_schedule import Diffusion
from sdxl_ray.training.in_training_evaluation import require_encoders
from sdxl_ray.training.optim import lr_multiplier, require_available
from sdxl_ray.training.trainer import resolution_of


def preflight(recipe: Recipe, device: str) -> BaseFiles:
    """Check a recipe against its base, without reading weights or images; where the base is.

    `device` is the workers' kind, "cuda" or "cpu". Raises UserError, one line.
    """
    recipe.require_complete()
    files = locate(recipe.base)
    configs = component_configs(files)
    Diffusion.of(configs["scheduler"], recipe.objective)
    lr_multiplier(recipe.optim)
    require_available(recipe.optim, device)
    require_initial(recipe, files)
    if isinstance(recipe.tuning, LoraTuning):
        _require_targets(recipe.tuning, configs)
    require_encoders(recipe)
    return files


def base_resolution(recipe: Recipe, files: BaseFiles) -> int:
    """Pixels of a square image: the recipe's, else those of its base."""
    configs = component_configs(files)
    return resolution_of(recipe, configs["unet"], configs["vae"])


def _require_targets(tuning: LoraTuning, configs: dict[str, dict[str, object]]) -> None:
    """Inject the adapters into a model without storage: every target and pattern must find its layers."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(configs["unet"])
        one = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])) if 1 in tuning.text_encoders else None
        two = (
            CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"]))
            if 2 in tuning.text_encoders
            else None
        )
        TUNINGS[type(tuning)].prepare(Denoiser(unet, one, two), tuning, seed=0)
