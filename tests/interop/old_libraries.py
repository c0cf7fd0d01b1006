"""Runs under older libraries (`make interop`): loads what we write with them alone, and prints what they got as JSON.

    python -m tests.interop.old_libraries model FOLDER
    python -m tests.interop.old_libraries single FILE CONFIG
    python -m tests.interop.old_libraries lora BASE FILE [LAYER...]

Nothing of sdxl_ray is imported: the older libraries must do without it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline


def _pipeline(source: str, config: str | None = None) -> Any:
    if config is not None:
        load = StableDiffusionXLPipeline.from_single_file
        return load(source, config=config, local_files_only=True, torch_dtype=torch.float32, add_watermarker=False)
    return StableDiffusionXLPipeline.from_pretrained(source, torch_dtype=torch.float32, add_watermarker=False)


@torch.no_grad()
def _numbers(pipe: Any) -> dict[str, list[float]]:
    """The conditioning of one prompt and one prediction of the UNet: equal numbers mean equal weights and tokens."""
    states, _, pooled, _ = pipe.encode_prompt("a photo of a robot on the beach", do_classifier_free_guidance=False)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]])
    condition = {"text_embeds": pooled, "time_ids": ids}
    prediction = pipe.unet(noise, 500, encoder_hidden_states=states, added_cond_kwargs=condition).sample
    image = pipe.vae.decode(noise / pipe.vae.config.scaling_factor).sample
    parts = {"states": states, "pooled": pooled, "prediction": prediction, "image": image}
    return {name: value.flatten()[:200].tolist() for name, value in parts.items()}


def _layers(pipe: Any, names: list[str]) -> dict[str, list[float]]:
    """The beginning of each layer's weight, by `part:module`."""
    found = {}
    for name in names:
        part, _, path = name.partition(":")
        modules = dict(getattr(pipe, part).named_modules())
        module = modules.get(path) or modules[path.removeprefix("text_model.")]
        found[name] = getattr(module, "base_layer", module).weight.detach().flatten()[:200].tolist()
    return found


def main(kind: str, source: str, *more: str) -> dict[str, Any]:
    """What the libraries got of a source."""
    if kind == "model":
        return _numbers(_pipeline(source))
    if kind == "single":
        return _numbers(_pipeline(source, more[0]))
    pipe, file = _pipeline(source), Path(more[0])
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="x")
    pipe.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"])
    return _layers(pipe, list(more[1:]))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
