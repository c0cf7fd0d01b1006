"""Lays shipped weights out as the stages leave theirs, so that a part can be trained further alone and replaced.

A part is a scorer or the base (autoencoder and UNet; the text encoders stay, because the UNet was taught by them). It
goes on from its own shipped weights, since the states of the stages before are long gone; a scorer beside a generator
that is the shipped one spoiled. Whatever is not the part stays byte for byte what it is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdxl_ray.tiny._build import export
from sdxl_ray.tiny import shipped
from sdxl_ray.tiny._build import stage_clip
from sdxl_ray.tiny._build.finish import MADE, stage_made
from sdxl_ray.tiny._build.stages import STEPS, StageJob, Step, load_identity, load_pair, load_vae
from sdxl_ray.tiny._build.layout import SEED, configs

_SPOILED = 0.4  # noise in the UNet's weights, as a share of each matrix's deviation: colours and places, hardly a shape


def lay_out(job: StageJob, part: str) -> None:
    """Write what the stages of a part read: weights to start from, and what other stages would have left.

    Raises UserError when a shipped file is missing or altered.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel, ViTModel

    base = shipped.folder()
    torch.manual_seed(SEED + 4)
    autoencoder = AutoencoderKL.from_pretrained(base / "vae").state_dict()
    weights = UNet2DConditionModel.from_pretrained(base / "unet").state_dict()
    if part == "base":
        torch.save(autoencoder, job.work / "vae-start.pt")
        torch.save(weights, job.work / "unet-start.pt")
    else:
        torch.save(autoencoder, job.work / "vae-done.pt")
        spoiled = {name: _spoiled(weight) for name, weight in weights.items()}
        torch.save({"averages": spoiled}, job.work / "unet-early.pt")
    pair: Any = stage_clip.ClipPair()
    pair.clip.load_state_dict(CLIPModel.from_pretrained(shipped.verify(shipped.CLIP)).state_dict())
    pair.first.load_state_dict(CLIPTextModel.from_pretrained(base / "text_encoder").state_dict())
    torch.save(pair.state_dict(), job.work / "clip-done.pt")
    known = ViTModel.from_pretrained(shipped.verify(shipped.IDENTITY), add_pooling_layer=False)
    torch.save(known.state_dict(), job.work / "identity-start.pt")


#: part -> the stages that make it from what `lay_out` leaves, in their order; those with a share use every core
STAGES: dict[str, dict[str, Step]] = {
    "identity": {"generated": STEPS["generated"], "identity": replace(STEPS["identity"], share=1.0)},
    "base": {
        "scenes": STEPS["scenes"],
        "vae": replace(STEPS["vae"], share=0.3),
        "unet": replace(STEPS["unet"], share=0.7),
    },
    "vision": {"scenes": STEPS["scenes"], "vision": replace(STEPS["vision"], share=1.0)},
}


def put(job: StageJob, part: str, root: Path) -> None:
    """Put the trained part in the place of the one below `root`; everything else there stays."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    started_from = shipped.index_revision(root)
    if part == "base":
        unet = UNet2DConditionModel.from_config(configs()["unet"])
        unet.load_state_dict(torch.load(job.work / "unet-done.pt", weights_only=True))
        first = CLIPTextModel.from_pretrained(root / "base" / "text_encoder")
        second = CLIPTextModelWithProjection.from_pretrained(root / "base" / "text_encoder_2")
        export.write_base(root / "base", load_vae(job), unet, first, second)
    elif part == "identity":
        export.write_identity(root / "scorers" / "identity", load_identity(job))
    else:
        export.write_clip(root / "scorers" / "clip", load_pair(job, "vision-done.pt").clip)
    shipped.write_index(root)
    made = json.loads((root / MADE).read_text())
    for stage in _trained(part):
        made["stages"][stage] = {**stage_made(job, stage), "started_from": started_from}
    made["minutes"] = sum(stage["minutes"] for stage in made["stages"].values())
    (root / MADE).write_text(json.dumps(made, indent=1) + "\n")


def _trained(part: str) -> list[str]:
    return [name for name, stage in STAGES[part].items() if stage.share]


def _spoiled(weight: torch.Tensor) -> torch.Tensor:
    return weight + _SPOILED * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else weight
