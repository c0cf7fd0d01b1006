"""Lays shipped weights out as the stages leave theirs, so that one scorer can be trained alone and replaced.

The base must stay byte for byte what it is (artifacts name its revision), and the states of the stages before are
long gone: a scorer goes on from its own shipped weights, beside a generator that is the shipped one spoiled.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdxl_ray.tiny import export, shipped
from sdxl_ray.tiny.builder import clip, identity, upper
from sdxl_ray.tiny.builder.finish import MADE, stage_made
from sdxl_ray.tiny.builder.session import Session
from sdxl_ray.tiny.builder.stages import STEPS, Job, Step, load_pair, load_vae, scenery
from sdxl_ray.tiny.layout import SEED

_START = "identity-start.pt"
_BATCHES_A_MINUTE = 18.5  # of training, so that a longer one has more to see
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
    eye: Any = identity.Identity()
    known = ViTModel.from_pretrained(shipped.verify(shipped.IDENTITY), add_pooling_layer=False)
    eye.vit.load_state_dict(known.state_dict())
    torch.save(eye.state_dict(), job.work / _START)


def draw_batches(job: Job) -> None:
    """What the identity encoder's lower layers make of its training batches; several processes share the work."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    numbers = range(rank, max(2, round(_BATCHES_A_MINUTE * job.minutes)), world)
    generated = np.load(job.work / "generated.npy")
    upper.draw(job.work / "batches", _start(job), scenery(), generated, load_vae(job), numbers)
    if rank == 0:
        (job.work / "batches.done").touch()


def train_upper(job: Job) -> None:
    whole = _start(job)
    # Trained weights lose what they know to an optimizer that knows nothing yet: a longer rise.
    session = Session(job.work, "identity", job.minutes, upper.Upper(whole), 1e-3, average=0.998, warmup=0.05)
    upper.train(session, job.work / "batches")
    session.finish()
    if session.rank == 0:
        torch.save(whole.state_dict(), job.work / "identity-done.pt")


def _start(job: Job) -> identity.Identity:
    whole = identity.Identity()
    whole.load_state_dict(torch.load(job.work / _START, weights_only=True))
    return whole


#: scorer -> the stages that make it from what `lay_out` leaves, in their order; those with a share use every core
STAGES: dict[str, dict[str, Step]] = {
    "identity": {
        "generated": STEPS["generated"],
        "batches": Step(draw_batches, ("generated.npy",), "batches.done", 1.0),
        "identity": Step(train_upper, ("batches.done",), "identity-done.pt", 1.0),
    },
    "vision": {"scenes": STEPS["scenes"], "vision": replace(STEPS["vision"], share=1.0)},
}


def put(job: Job, scorer: str, root: Path) -> None:
    """Put the trained scorer in the place of the one below `root`; everything else there stays."""
    started_from = shipped.index_revision(root)
    if scorer == "identity":
        eye = identity.Identity()
        eye.load_state_dict(torch.load(job.work / "identity-done.pt", weights_only=True))
        export.write_identity(root / "scorers" / "identity", eye.vit)
    else:
        export.write_clip(root / "scorers" / "clip", load_pair(job, "vision-done.pt").clip)
    shipped.write_index(root)
    made = json.loads((root / MADE).read_text())
    made["stages"][scorer] = {**stage_made(job, scorer), "started_from": started_from}
    made["minutes"] = sum(stage["minutes"] for stage in made["stages"].values())
    (root / MADE).write_text(json.dumps(made, indent=1) + "\n")


def _spoiled(weight: torch.Tensor) -> torch.Tensor:
    return weight + _SPOILED * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else weight
