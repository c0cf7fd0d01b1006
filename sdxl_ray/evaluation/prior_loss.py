"""The prior loss: how well a model still denoises what the base draws of the class, at fixed noise and timesteps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sdxl_ray.config.schema import MaxTokenLength, Objective
from sdxl_ray.data.latents import encode_images, scale_latents
from sdxl_ray.io.atomic import write_text
from sdxl_ray.models.losses import example_loss
from sdxl_ray.models.noise_schedule import Diffusion, gaussian
from sdxl_ray.models.text_encoders import align, encode_prompts

#: (noise, timestep) pairs an image; their timesteps lie evenly over the schedule.
DRAWS = 8
_CODE_VERSION = 1


@torch.no_grad()
def prior_losses(
    pipe: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    seed: int,
    draws: int = DRAWS,
    only: Sequence[int] | None = None,
    max_token_length: MaxTokenLength = 75,
) -> npt.NDArray[np.float64]:
    """Unweighted denoising loss of each image under its prompt, fp64 [N]: mean over `draws`.

    Noise depends on (seed, image's place, draw) only, so models are compared at the same noise. Loss is on the
    model's own prediction type. only: the places of the images that are wanted; N is their number.
    Raises RunError when the VAE gives NaN.
    """
    places = range(len(images)) if only is None else only
    diffusion = Diffusion.of(pipe.scheduler.config, Objective())
    with torch.autocast(pipe.vae.device.type, enabled=False):  # SDXL's VAE needs its own precision
        rows = encode_images(pipe.vae, [images[i] for i in places], [f"class image {i}" for i in places])
    device, dtype = pipe.unet.device, pipe.unet.dtype
    losses = np.empty((len(places), draws))
    steps = [int((draw + 0.5) / draws * diffusion.steps) for draw in range(draws)]
    texts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    # Every prompt, whichever images are wanted: where text encoders are sharded, each rank must encode as often.
    for prompt in dict.fromkeys(prompts):
        states, pooled_1P = encode_prompts(pipe, [prompt], max_token_length)
        texts[prompt] = align(states), pooled_1P
    for n, (i, row) in enumerate(zip(places, rows, strict=True)):
        latents_1CHW = scale_latents(pipe.vae.config, row["mean"][None])
        hidden_1LC, pooled_1P = texts[prompts[i]]
        noise_BCHW = gaussian(seed, "prior loss", i, range(draws), latents_1CHW.shape[1:])
        t_B = torch.tensor(steps)
        clean_BCHW = latents_1CHW.expand_as(noise_BCHW)
        size = (images[i].height, images[i].width)
        time_ids_B6 = torch.tensor([[*size, 0, 0, *size]] * draws, device=device)
        prediction_BCHW = pipe.unet(
            diffusion.add_noise(clean_BCHW, noise_BCHW, t_B).to(device, dtype),
            t_B.to(device),
            encoder_hidden_states=hidden_1LC.expand(draws, -1, -1),
            added_cond_kwargs={"text_embeds": pooled_1P.expand(draws, -1), "time_ids": time_ids_B6},
            return_dict=False,
        )[0]
        target_BCHW = diffusion.target(clean_BCHW, noise_BCHW, t_B)
        losses[n] = example_loss(prediction_BCHW.cpu(), target_BCHW, Objective()).double().numpy()
    mean_N: npt.NDArray[np.float64] = losses.mean(axis=1)
    return mean_N


def notes_path(folder: Path, what: Any) -> Path:
    """Where the losses of a model on given images are kept; `what` is plain data that decides them."""
    plain = json.dumps([_CODE_VERSION, what], sort_keys=True)
    return folder / f"prior-{hashlib.sha256(plain.encode()).hexdigest()}.json"


def read_notes(path: Path) -> npt.NDArray[np.float64] | None:
    """Losses that were kept, or None when there are none or the file is damaged."""
    try:
        losses = np.array(json.loads(path.read_text()), np.float64)
    except (OSError, ValueError):
        return None
    return losses if losses.ndim == 1 else None


def write_notes(path: Path, losses: npt.NDArray[np.float64]) -> None:
    """Keep losses; JSON holds every float bit for bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(losses.tolist()), shared=True)  # concurrent runs share the folder
