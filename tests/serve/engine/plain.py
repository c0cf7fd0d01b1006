"""What the engine is held to: the plain pipeline with PEFT's own adapters, one image at a time."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from sdxl_ray.config.schema import Base
from sdxl_ray.io.artifact import Artifact, write_manifest
from sdxl_ray.models.pipeline import generate, load_pipeline
from sdxl_ray.tiny import shipped
from serve.engine.engine import ServingEngine
from serve.engine.request import ImageRequest
from serve.engine.schedulers import make_scheduler
from serve.engine.settings import EngineSettings

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
#: Targets of the UNet, of the text encoders, and settings: alpha unlike the rank, per layer, and rank-stabilised.
KINDS: dict[str, tuple[list[str], list[str], dict[str, Any]]] = {
    "round": (ATTENTION, [], {"r": 4, "lora_alpha": 2}),
    "sharp": (
        ["to_q", "ff.net.0.proj", "conv1", "time_emb_proj"],
        [],
        {"r": 3, "lora_alpha": 1, "use_rslora": True, "alpha_pattern": {"conv1": 0.5}, "rank_pattern": {"to_q": 5}},
    ),
    "wordy": (["to_k"], ["q_proj", "fc1"], {"r": 2, "lora_alpha": 1}),
}


def make_lora(folder: Path, kind: str, seed: int = 0, *, recipe: dict[str, Any] | None = None, **more: Any) -> Artifact:
    """A random LoRA as diffusers saves it."""
    unet_targets, text_targets, settings = KINDS[kind]
    pipe = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
    layers: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in ("unet", "text_encoder", "text_encoder_2"):
            targets = unet_targets if part == "unet" else text_targets
            if targets:
                model = getattr(pipe, part)
                config = LoraConfig(target_modules=targets, init_lora_weights=False, **settings, **more)
                model.add_adapter(config)
                layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
                layers[f"{part}_lora_adapter_metadata"] = config.to_dict()
    pipe.save_lora_weights(folder, **layers)
    return manifest(folder, recipe=recipe)


def manifest(
    folder: Path, *, kind: str = "lora", revision: str | None = None, recipe: dict[str, Any] | None = None
) -> Artifact:
    """Make a folder an artifact of the embedded base."""
    return write_manifest(
        folder,
        kind=kind,  # type: ignore[arg-type]
        recipe=recipe or {},
        recipe_identity="",
        base_id="tiny",
        base_revision=revision or shipped.revision(),
        step=1,
    )


class Plain:
    """A pipeline of its own for the base, and one with all adapters, switched by `set_adapters`."""

    def __init__(self, adapters: dict[str, Artifact]) -> None:
        self._base = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
        self._tuned = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PEFT asks whether several adapters are really meant
            for name, artifact in adapters.items():
                self._tuned.load_lora_weights(artifact.folder, adapter_name=name)

    def draw(self, request: ImageRequest) -> Image.Image:
        """The image of a request."""
        pipe = self._tuned if request.adapters else self._base
        if request.adapters:
            weights: list[Any] = []
            for use in request.adapters:
                blocks = {group: use.scale * getattr(use, group) for group in ("down", "mid", "up")}
                # Given blocks, diffusers leaves layers outside attentions at 1.
                alike = len(set(blocks.values())) == 1
                parts = {"unet": blocks, "text_encoder": use.scale, "text_encoder_2": use.scale}
                weights.append(use.scale if alike else parts)
            pipe.set_adapters([use.name for use in request.adapters], weights)
        return draw_with(pipe, request)


def draw_with(pipe: StableDiffusionXLPipeline, request: ImageRequest) -> Image.Image:
    """A request's image by a pipeline whose adapters are set."""
    other = StableDiffusionXLPipeline(
        **{**pipe.components, "scheduler": make_scheduler(request.scheduler, pipe.scheduler)},
        force_zeros_for_empty_prompt=pipe.config.force_zeros_for_empty_prompt,
    )
    return generate(
        other,
        [request.prompt],
        seeds=[request.seed],
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        negative_prompt=request.negative_prompt,
        height=request.height,
        width=request.width,
        max_token_length=request.max_token_length,
    )[0]


def levels(ours: Image.Image, theirs: Image.Image) -> int:
    """Largest difference of two images in 8-bit levels."""
    return int(np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max())


def differences(ours: Iterable[Image.Image], theirs: Iterable[Image.Image]) -> list[int]:
    """`levels` of each pair."""
    return [levels(a, b) for a, b in zip(ours, theirs, strict=True)]


@asynccontextmanager
async def running(engine: ServingEngine) -> AsyncIterator[ServingEngine]:
    """The engine, started, and stopped at the end."""
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def small(**changes: Any) -> EngineSettings:
    """Settings for a test on the CPU, where a GPU may also be."""
    return EngineSettings(**{"device": "cpu", "dtype": "fp32", **changes})
