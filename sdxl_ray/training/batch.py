"""Parts: everything around the denoiser that turns examples into its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.data.batch_sampler import Example
from sdxl_ray.data.latents import LatentSource, TextSource, scale_latents
from sdxl_ray.models.denoiser import TextInputs
from sdxl_ray.models.losses import example_loss, timestep_weight
from sdxl_ray.models.noise_schedule import Diffusion, draw, gaussian
from sdxl_ray.models.text_encoders import TokenIds, align, tokenize


@dataclass
class Batch:
    """A micro-batch, ready for the denoiser. Noise and timesteps are part of it: nothing is drawn later.

    latents, noise fp32 [B, C, H, W]; t int64 [B]; time_ids int64 [B, 6]; weight fp32 [B] (of the example, not of the
    timestep); indices into the global batch.
    """

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    t_B: Tensor
    text: TextInputs
    time_ids_B6: Tensor
    weight_B: Tensor
    indices: list[int]

    def to(self, device: torch.device) -> Batch:
        """The same on another device; a GPU gets it without waiting for the steps before."""
        return Batch(
            self.latents_BCHW.to(device, non_blocking=True),
            self.noise_BCHW.to(device, non_blocking=True),
            self.t_B.to(device, non_blocking=True),
            self.text.to(device),
            self.time_ids_B6.to(device, non_blocking=True),
            self.weight_B.to(device, non_blocking=True),
            self.indices,
        )


@dataclass
class BatchEncoder:
    """The frozen parts of a run. `text` has None for an encoder that trains; its captions stay token ids."""

    recipe: Recipe
    diffusion: Diffusion
    vae_config: Any
    tokenizers: tuple[Any, Any]
    latents: LatentSource
    text: tuple[TextSource | None, TextSource | None]
    zero_empty_prompt: bool

    def inputs(self, examples: Sequence[Example], step: int, seed: int, purpose: str = "train") -> Batch:
        """Encode examples of one global batch, with the noise, timesteps and latents that (seed, step, index) give."""
        indices = [e.index for e in examples]
        rows = self.latents.get([e.view for e in examples])
        mean_BCHW = torch.stack([row["mean"] for row in rows])
        std_BCHW = torch.stack([row["std"] for row in rows])
        shape = mean_BCHW.shape[1:]
        sample_BCHW = mean_BCHW + std_BCHW * gaussian(seed, f"{purpose} posterior", step, indices, shape)
        noise_BCHW, t_B = draw(self.recipe.objective, self.diffusion.steps, seed, step, indices, shape)
        return Batch(
            latents_BCHW=scale_latents(self.vae_config, sample_BCHW),
            noise_BCHW=noise_BCHW,
            t_B=t_B,
            text=self.text_inputs(examples),
            time_ids_B6=torch.tensor([e.view.time_ids for e in examples], dtype=torch.int64),
            weight_B=torch.tensor([e.weight for e in examples]),
            indices=indices,
        )

    def text_inputs(self, examples: Sequence[Example]) -> TextInputs:
        """Conditioning of examples; a dropped caption is zeros or the empty prompt, as the base's pipeline has it."""
        captions = ["" if e.dropped and not self.zero_empty_prompt else e.caption for e in examples]
        hidden: list[Tensor | None] = [None, None]
        ids: list[TokenIds | None] = [None, None]
        pooled_BP: Tensor | None = None
        for i, source in enumerate(self.text):
            if source is None:
                ids[i] = tokenize(self.tokenizers[i], captions, self.recipe.data.max_token_length)
                continue
            rows = source.get(captions)
            hidden[i] = align([row["hidden"] for row in rows])
            if i == 1:
                pooled_BP = torch.stack([row["pooled"] for row in rows])
        keep = [0.0 if e.dropped and self.zero_empty_prompt else 1.0 for e in examples]
        return TextInputs((hidden[0], hidden[1]), (ids[0], ids[1]), pooled_BP, torch.tensor(keep))

    def losses(self, denoise: Any, x: Batch, *, weighted: bool = True) -> Tensor:
        """Loss of each example, fp32 [B], with its timestep's weight unless `weighted` is false."""
        noisy_BCHW = self.diffusion.add_noise(x.latents_BCHW, x.noise_BCHW, x.t_B)
        prediction_BCHW = denoise(noisy_BCHW, x.t_B, x.text, x.time_ids_B6)
        target_BCHW = self.diffusion.target(x.latents_BCHW, x.noise_BCHW, x.t_B)
        loss_B = example_loss(prediction_BCHW, target_BCHW, self.recipe.objective)
        return loss_B * timestep_weight(self.recipe.objective, self.diffusion, x.t_B) if weighted else loss_B
