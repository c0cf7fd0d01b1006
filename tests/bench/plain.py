"""The plain loop: one process, diffusers + PEFT + Accelerate, as a practitioner writes it from their documentation.

Images become pixels once, before the loop. Every step encodes them with the VAE and the prompts with both text
encoders, adds noise, predicts it, and takes a clipped AdamW step; its loss is read, for a progress bar. With
`cached`, posteriors and text states are computed once and kept in memory instead.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from arms import LR, PIXELS, PROMPT, TARGETS, Arm
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

WIDTHS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Photos(Dataset[dict[str, Any]]):
    """The images of a folder, again and again, `length` in all: pixels [3, H, W] in [-1, 1], prompt, time ids."""

    def __init__(self, folder: Path, size: int, length: int) -> None:
        processor = VaeImageProcessor(vae_scale_factor=8)
        self._rows = []
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
                image = Image.open(file).convert("RGB")
                pixels_1CHW = processor.preprocess(image, size, size, resize_mode="crop")
                ids = [image.height, image.width, 0, 0, size, size]
                self._rows.append({"pixels": pixels_1CHW[0], "prompt": PROMPT, "time_ids": torch.tensor(ids)})
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index % len(self._rows)]

    def distinct(self) -> list[dict[str, Any]]:
        """Each image's row once; the loop reads the same objects."""
        return self._rows


def train(arm: Arm, pipe: StableDiffusionXLPipeline, folder: Path) -> dict[str, Any]:
    """Train `arm`; seconds and loss of each step, and trained scalars."""
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(arm.precision, arm.precision))
    width = WIDTHS[arm.precision]
    pipe.vae.to(accelerator.device, torch.float32)
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        encoder.to(accelerator.device, width).requires_grad_(False)
    pipe.vae.requires_grad_(False)
    unet = pipe.unet
    if arm.tuning == "lora":
        unet.requires_grad_(False).to(accelerator.device, width)
        unet.add_adapter(
            LoraConfig(r=arm.rank, lora_alpha=arm.rank, init_lora_weights="gaussian", target_modules=list(TARGETS))
        )
        cast_training_params(unet, dtype=torch.float32)
    else:
        unet.to(accelerator.device, torch.float32).requires_grad_(True)
    unet.train()
    if arm.checkpointing:
        unet.enable_gradient_checkpointing()
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR[arm.tuning], betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    schedule = get_scheduler("constant", optimizer=optimizer)
    photos = Photos(folder, PIXELS[arm.shape], arm.all_steps * arm.batch)
    if arm.cached:
        _encode_once(photos, pipe, accelerator.device)
    loader = DataLoader(photos, batch_size=arm.batch, shuffle=True)
    count = sum(p.numel() for p in trained)
    unet, optimizer, loader, schedule = accelerator.prepare(unet, optimizer, loader, schedule)
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    seconds, losses = [], []
    started = time.perf_counter()
    for batch in loader:
        with accelerator.accumulate(unet):
            loss = _loss(pipe, unet, noise_scheduler, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.detach().item())
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    return {"seconds": seconds, "losses": losses, "trainable": count, "device": str(accelerator.device)}


def _loss(pipe: Any, unet: Any, noise_scheduler: Any, batch: dict[str, Any]) -> Tensor:
    latents_BCHW = _latents(pipe, batch)
    noise_BCHW = torch.randn_like(latents_BCHW)
    steps = noise_scheduler.config.num_train_timesteps
    t_B = torch.randint(0, steps, (len(latents_BCHW),), device=latents_BCHW.device)
    states_BLC, pooled_BP = _states(pipe, batch)
    prediction_BCHW = unet(
        noise_scheduler.add_noise(latents_BCHW, noise_BCHW, t_B).to(states_BLC.dtype),
        t_B,
        encoder_hidden_states=states_BLC,
        added_cond_kwargs={"text_embeds": pooled_BP, "time_ids": batch["time_ids"]},
        return_dict=False,
    )[0]
    return mse_loss(prediction_BCHW.float(), noise_BCHW.float())


def _latents(pipe: Any, batch: dict[str, Any]) -> Tensor:
    if "mean" in batch:
        raw_BCHW = batch["mean"] + batch["std"] * torch.randn_like(batch["mean"])
    else:
        raw_BCHW = pipe.vae.encode(batch["pixels"].to(pipe.vae.dtype)).latent_dist.sample()
    scaled_BCHW: Tensor = raw_BCHW * pipe.vae.config.scaling_factor
    return scaled_BCHW


def _states(pipe: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    if "states" in batch:
        return batch["states"], batch["pooled"]
    device = pipe.text_encoder.device
    states_BLC, _, pooled_BP, _ = pipe.encode_prompt(
        list(batch["prompt"]), device=device, do_classifier_free_guidance=False
    )
    return states_BLC, pooled_BP


def _encode_once(photos: Photos, pipe: Any, device: torch.device) -> None:
    """Replace pixels and prompts by what the frozen parts say about them."""
    with torch.no_grad():
        for row in photos.distinct():
            posterior = pipe.vae.encode(row.pop("pixels")[None].to(device)).latent_dist
            states_1LC, pooled_1P = _states(pipe, {"prompt": [row.pop("prompt")]})
            row |= {"mean": posterior.mean[0].cpu(), "std": posterior.std[0].cpu()}
            row |= {"states": states_1LC[0].cpu(), "pooled": pooled_1P[0].cpu()}
