"""Sample images during training: the same prompts and seeds at every evaluation, drawn by all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.data.image_grid import grid
from sdxl_ray.data.png import png_bytes
from sdxl_ray.io.collectives import gathered
from sdxl_ray.models.base_model import Components
from sdxl_ray.models.pipeline import generate
from sdxl_ray.training.engine import TrainingEngine

#: Images that a training process draws at once, beside its optimizer's state.
AT_ONCE = 4
_PLACES = ("", " on the beach", " in the snow", " on a wooden table")


def sample_prompts(recipe: Recipe, captions: list[str]) -> list[str]:
    """The recipe's prompts; else the subject in a few places; else the first captions."""
    if recipe.evaluation.prompts:
        return list(recipe.evaluation.prompts)
    prompt = recipe.data.instance_prompt
    return [f"{prompt}{place}" for place in _PLACES] if prompt else captions[: len(_PLACES)]


class Samples:
    """Draws a run's samples into `folder` as `step-0000100/<i>.png`, and one grid of prompts x evaluations."""

    def __init__(
        self, recipe: Recipe, components: Components, prompts: list[str], resolution: int, folder: Path
    ) -> None:
        self._recipe, self._components, self._resolution, self._folder = recipe, components, resolution, folder
        n = recipe.evaluation.samples_per_prompt
        self._jobs = [(prompt, recipe.evaluation.seed + i) for prompt in prompts for i in range(n)]

    def draw(self, engine: TrainingEngine, step: int) -> Path | None:
        """Collective. Draw every job at the model's present weights; the grid so far, on rank 0."""
        with drawing(self._components, engine) as pipe:
            drawn = gathered(
                len(self._jobs), lambda mine: self._draw(pipe, [self._jobs[i] for i in mine]), engine.group
            )
        if engine.group.rank != 0:
            return None
        home = self._folder / f"step-{step:07d}"
        home.mkdir(parents=True, exist_ok=True)
        for i, data in enumerate(drawn):
            (home / f"{i:03d}.png").write_bytes(data)
        return self._grid()

    def _draw(self, pipe: Any, jobs: list[tuple[str, int]]) -> list[bytes]:
        images = generate(
            pipe,
            [prompt for prompt, _ in jobs],
            seeds=[seed for _, seed in jobs],
            num_inference_steps=self._recipe.evaluation.num_inference_steps,
            guidance_scale=self._recipe.evaluation.guidance_scale,
            height=self._resolution,
            width=self._resolution,
            batch_size=AT_ONCE,
            max_token_length=self._recipe.data.max_token_length,
        )
        return [png_bytes(image) for image in images]

    def _grid(self) -> Path:
        """Rows are jobs, columns are evaluations: before training on the left, the newest on the right."""
        evaluations = sorted(self._folder.glob("step-*"))
        shown = (
            evaluations
            if len(evaluations) <= 6
            else [evaluations[round(k * (len(evaluations) - 1) / 5)] for k in range(6)]
        )
        rows = [[Image.open(evaluation / f"{i:03d}.png") for evaluation in shown] for i in range(len(self._jobs))]
        labels = [f"{prompt} (seed {seed})" for prompt, seed in self._jobs]
        columns = [
            "before" if int(evaluation.name[5:]) == 0 else f"step {int(evaluation.name[5:])}" for evaluation in shown
        ]
        path = self._folder / "grid.png"
        grid(rows, labels, columns).save(path)
        return path


@contextmanager
def drawing(components: Components, engine: TrainingEngine) -> Iterator[Any]:
    """Collective. Inside, the pipeline of the model as it is now: in evaluation mode, all parts on the device."""
    engine.denoiser.eval()
    try:
        with on_device(components, engine.device), _one_precision(components, engine.device):
            yield components.pipeline()
    finally:
        engine.denoiser.train()


def _one_precision(components: Components, device: torch.device) -> AbstractContextManager[None]:
    """Autocast to the frozen parts' precision where fp32 masters train beside them; nothing where all parts agree."""
    lower = {m.dtype for m in (components.unet, *components.text_encoders)} - {torch.float32}
    mixed = lower and components.unet.dtype == torch.float32
    return torch.autocast(device.type, lower.pop()) if mixed else nullcontext()


@contextmanager
def on_device(components: Components, device: torch.device) -> Iterator[None]:
    """Inside, the VAE and the frozen text encoders are on `device`; afterwards they give its memory back."""
    guests = [m for m in (components.vae, *components.text_encoders) if m.device != device]
    for module in guests:
        module.to(device)
    try:
        yield
    finally:
        for module in guests:
            module.to("cpu")
