"""Before the first image: weights in memory, their layout, and compiled code for every batch that will come.

The blocks are compiled for any number of rows, pixels and adapter columns: a program per shape would take minutes
of start. What was still not foreseen (an adapter on other layers) runs uncompiled, instead of stopping the traffic.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.fx.experimental._config as shapes
from diffusers import StableDiffusionXLPipeline

from sdxl_ray.config.schema import Base
from sdxl_ray.io.artifact import LORA_WEIGHTS, Artifact
from sdxl_ray.models.pipeline import ADAPTER, load_pipeline
from serve.engine.adapter import AdapterStrength, LoadedAdapter, LoraPair, layer_names
from serve.engine.multi_lora import LoraLayers
from serve.engine.settings import EngineSettings

PARTS = ("unet", "text_encoder", "text_encoder_2")
#: Programs a block may have; torch's default of 8 is fewer than widths x {one row, several} x {base, adapters}.
_PROGRAMS = 64


def load(
    base: Base, artifact: Artifact | None, fused: Artifact | None, settings: EngineSettings
) -> StableDiffusionXLPipeline:
    """The weights an engine runs on: the base's, those of a full artifact, or the base's with one LoRA merged in."""
    pipe = load_pipeline(base, fused or artifact, dtype=settings.width, device=settings.place)
    if fused is not None and LORA_WEIGHTS in fused.manifest.files:  # else it was loaded into the weights
        pipe.fuse_lora(components=list(PARTS), adapter_names=[ADAPTER])
        pipe.unload_lora_weights()
    return pipe


def lay_out(pipe: StableDiffusionXLPipeline, settings: EngineSettings) -> None:
    """Memory layout of UNet and VAE."""
    if settings.in_channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)


def compile_blocks(
    pipe: Any,
    lora: LoraLayers,
    adapters: Collection[Artifact],
    sizes: Iterable[tuple[int, int]],
    max_batch: int,
    backend: str = "inductor",
) -> None:
    """Compile the UNet's transformer blocks and run them over the kinds of batches, with and without adapters.

    sizes: (height, width) of latents. To be called on the thread that will run the UNet, in inference mode.
    """
    lora.install({name for artifact in adapters for name in layer_names(artifact, "unet")})
    pipe.unet.compile_repeated_blocks(fullgraph=True, dynamic=True, backend=backend)
    # Duck shapes: 64 tokens would be taken for the same number as 64 channels.
    freely = shapes.patch(use_duck_shape=False)  # type: ignore[attr-defined]
    with torch._dynamo.config.patch(recompile_limit=_PROGRAMS), freely, torch.compiler.set_stance("default"):
        for rank in (0, 16) if lora.bases else (0,):
            one = _silent(lora, rank)
            lora.activate([one])
            for height, width in sizes:
                for rows in sorted({1, 2, 2 * max_batch}):
                    lora.use(lora.masks([[AdapterStrength(one, 1.0)]] * rows, pipe.unet.conv_in.weight.device))
                    _call(pipe, rows, height, width)
    torch.compiler.set_stance("eager_on_recompile")


def _silent(lora: LoraLayers, rank: int) -> LoadedAdapter:
    """An adapter that changes nothing, on every layer that any adapter changes; of rank 0: none at all."""
    pairs = {}
    for name, layer in lora.bases.items() if rank else ():
        out, inner, *kernel = layer.weight.shape
        zeros = layer.weight.new_zeros
        pairs[name] = LoraPair(zeros(rank, inner, *kernel), zeros(out, rank, *[1] * len(kernel)))
    return LoadedAdapter(f"silent {rank}", f"silent {rank}", {"unet": pairs}, {}, 0.0)


def _call(pipe: Any, rows: int, height: int, width: int) -> None:
    unet, weight = pipe.unet, pipe.unet.conv_in.weight
    unet(
        weight.new_zeros(rows, unet.config.in_channels, height, width),
        torch.zeros(rows, device=weight.device),
        encoder_hidden_states=weight.new_zeros(rows, pipe.tokenizer.model_max_length, unet.config.cross_attention_dim),
        added_cond_kwargs={
            "text_embeds": weight.new_zeros(rows, pipe.text_encoder_2.config.projection_dim),
            "time_ids": torch.zeros(rows, 6, device=weight.device),
        },
        return_dict=False,
    )
