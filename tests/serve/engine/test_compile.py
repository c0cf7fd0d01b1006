"""Compiled blocks fit every batch that comes; on the CPU, without generating code."""

from __future__ import annotations

import warnings

import pytest
import torch

from sdxl_ray.config.schema import Base
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.models.pipeline import load_pipeline
from serve.engine.adapter import AdapterStrength, LayerPlaces, load_adapter
from serve.engine.multi_lora import LoraLayers
from serve.engine.warmup import PARTS, compile_blocks


def _predict(unet: torch.nn.Module, rows: int, edge: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + edge)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    added = {"text_embeds": some(rows, 128), "time_ids": torch.full((rows, 6), 64.0)}
    inputs = (some(rows, 4, edge, edge), torch.arange(rows) * 9.0 + 1)
    hidden_RLC = some(rows, tokens, 192)
    return unet(*inputs, encoder_hidden_states=hidden_RLC, added_cond_kwargs=added, return_dict=False)[0]


@pytest.mark.exhaustive  # tracing takes most of a minute
@torch.inference_mode()
def test_no_batch_size_image_size_prompt_length_or_adapter_is_compiled_anew(loras: dict[str, Artifact]) -> None:
    plain, compiled = (load_pipeline(Base(), None, dtype=torch.float32, device="cpu") for _ in range(2))
    places = LayerPlaces.of({part: getattr(compiled, part) for part in PARTS})

    adapters = [
        load_adapter(name, artifact, Base(), places, torch.float32, torch.device("cpu"))
        for name, artifact in loras.items()
    ]
    reference, mixed = LoraLayers(plain.unet, "unet"), LoraLayers(compiled.unet, "unet", uniform=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about itself
            compile_blocks(compiled, mixed, list(loras.values()), [(16, 16)], max_batch=4, backend="eager")
        torch.compiler.set_stance("fail_on_recompile")
        for chosen in ([], adapters[:1], adapters[1:], adapters):
            reference.activate(chosen)
            mixed.activate(chosen)
            for rows, edge, tokens in ((1, 16, 32), (2, 16, 64), (5, 16, 32), (8, 16, 192), (4, 8, 96), (1, 24, 32)):
                strengths = [[AdapterStrength(one, 0.5) for one in chosen[: row % 3]] for row in range(rows, 0, -1)]
                for lora in (reference, mixed):
                    lora.use(lora.masks(strengths, torch.device("cpu")))
                ours, theirs = (_predict(pipe.unet, rows, edge, tokens) for pipe in (compiled, plain))
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    finally:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()
