"""Lays shipped weights out as the stages leave theirs, so that one scorer can be trained alone and replaced.

The base must stay byte for byte what it is (artifacts name its revision), and the states of the stages before are
long gone: a scorer goes on from its own shipped weights, beside a generator that is the shipped one spoiled.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdxl_ray.tiny import export, shipped
from sdxl_ray.tiny.builder import clip
from sdxl_ray.tiny.builder.finish import MADE, stage_made
from sdxl_ray.tiny.builder.stages import IDENTITY_START, STEPS, Job, Step, load_identity, load_pair
from sdxl_ray.tiny.layout import SEED

_SPOILED = 0.4  # noise in the UNet's weights, as a share of each matrix's deviation: colours and places, hardly a shape


def lay_out(job: Job) -> None:
    """Write what the stages of a scorer read: autoencoder, encoders, a generator that cannot draw, a start.

    Raises UserError when a shipped file is missing or altered.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel, ViTModel

    base = shipped.folder()
    torch.manual_seed(SEED + 4)
    torch.save(AutoencoderKL.from_pretrained(base / "vae").state_dict(), job.work / "vae-done.pt")
    weights = UNet2DConditionModel.from_pretrained(base / "unet").state_dict()
    torch.save({"averages": {name: _spoiled(weight) for name, weight in weights.items()}}, job.work / "unet-early.pt")
    pair: Any = clip.Pair()
    pair.clip.load_state_dict(CLIPModel.from_pretrained(shipped.verify(shipped.CLIP)).state_dict())
    pair.first.load_state_dict(CLIPTextModel.from_pretrained(base / "text_encoder").state_dict())
    torch.save(pair.state_dict(), job.work / "clip-done.pt")
    known = ViTModel.from_pretrained(shipped.verify(shipped.IDENTITY), add_pooling_layer=False)
    torch.save(known.state_dict(), job.work / IDENTITY_START)


#: scorer -> the stages that make it from what `lay_out` leaves, in their order; those with a share use every core
STAGES: dict[str, dict[str, Step]] = {
    "identity": {"generated": STEPS["generated"], "identity": replace(STEPS["identity"], share=1.0)},
    "vision": {"scenes": STEPS["scenes"], "vision": replace(STEPS["vision"], share=1.0)},
}


def put(job: Job, scorer: str, root: Path) -> None:
    """Put the trained scorer in the place of the one below `root`; everything else there stays."""
    started_from = shipped.index_revision(root)
    if scorer == "identity":
        export.write_identity(root / "scorers" / "identity", load_identity(job))
    else:
        export.write_clip(root / "scorers" / "clip", load_pair(job, "vision-done.pt").clip)
    shipped.write_index(root)
    made = json.loads((root / MADE).read_text())
    made["stages"][scorer] = {**stage_made(job, scorer), "started_from": started_from}
    made["minutes"] = sum(stage["minutes"] for stage in made["stages"].values())
    (root / MADE).write_text(json.dumps(made, indent=1) + "\n")


def _spoiled(weight: torch.Tensor) -> torch.Tensor:
    return weight + _SPOILED * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else weight
