"""The last step of the builder: what was trained becomes the shipped tree, and a note of how it was made."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from sdxl_ray.tiny._build import export
from sdxl_ray.tiny import shipped
from sdxl_ray.tiny._build.catalog import CLASSES
from sdxl_ray.tiny._build.places import PLACES
from sdxl_ray.tiny._build.stages import STEPS, StageJob, load_identity, load_pair, load_vae

MADE = "made.json"


def finish(job: StageJob, root: Path) -> None:
    """Write `base/`, `scorers/`, the index and the note below `root`; the work folder must hold every stage's end."""
    from diffusers import UNet2DConditionModel

    from sdxl_ray.tiny._build.layout import configs

    unet = UNet2DConditionModel.from_config(configs()["unet"])
    unet.load_state_dict(torch.load(job.work / "unet-done.pt", weights_only=True))
    pair = load_pair(job, "vision-done.pt")
    second = _with_projection(pair)
    export.write_base(root / "base", load_vae(job, "vae-sharp.pt"), unet, pair.first, second)
    export.write_clip(root / "scorers" / "clip", pair.clip)
    export.write_identity(root / "scorers" / "identity", load_identity(job))
    shipped.write_index(root)
    write_known(root)
    (root / MADE).write_text(json.dumps(_made(job), indent=1) + "\n")


def write_known(root: Path) -> None:
    """Write the names of what the base was shown, for those who prompt it."""
    (root / shipped.KNOWN).write_text(json.dumps({"classes": list(CLASSES), "places": list(PLACES)}, indent=1) + "\n")


def _with_projection(pair: Any) -> Any:
    """The pair's text tower as the class that SDXL's second text encoder has."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from sdxl_ray.tiny._build.layout import configs

    model = CLIPTextModelWithProjection(CLIPTextConfig(**configs()["text_encoder_2"]))
    weights = pair.clip.state_dict()
    ours = {key: weights[key] for key in model.state_dict() if key in weights}
    model.load_state_dict(ours)
    return model


def _made(job: StageJob) -> dict[str, object]:
    stages = {name: stage_made(job, name) for name in STEPS if (job.work / f"{name}.jsonl").is_file()}
    kind = torch.cuda.get_device_name() if job.device == "cuda" else f"{os.cpu_count()} CPU cores"
    return {
        "machine": f"{kind} ({platform.machine()}, torch {torch.__version__})",
        "scenes": job.scenes,
        "minutes": sum(stage["minutes"] for stage in stages.values()),
        "stages": stages,
    }


def stage_made(job: StageJob, name: str) -> dict[str, float]:
    """What a stage took, from the last line of its log."""
    last = json.loads((job.work / f"{name}.jsonl").read_text().splitlines()[-1])
    return {"minutes": last["minutes"], "samples": last["samples"]}
