"""Trains only the upper layers of the identity encoder, on what its lower ones made of a few hundred batches.

Lower layers see edges and colours and are good enough as they are; without them a step costs half, and batches are
drawn once instead of once a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sdxl_ray.tiny.builder import identity
from sdxl_ray.tiny.builder.session import Session
from sdxl_ray.tiny.builder.store import Array
from sdxl_ray.tiny.scenes import Scenery

_LOWER = 2  # layers that stay


class Upper(nn.Module):
    """The part of an `Identity` that is trained on; it shares the weights."""

    def __init__(self, whole: identity.Identity) -> None:
        super().__init__()
        self.layers, self.layernorm = whole.vit.layers[_LOWER:], whole.vit.layernorm
        self.classes, self.patches = whole.classes, whole.patches

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, 65, 128] of the lower layers -> (class token [B, 128], patch tokens [B, 64, 128])."""
        for layer in self.layers:
            tokens = layer(tokens, None)
        tokens = self.layernorm(tokens)
        return tokens[:, 0], tokens[:, 1:]


@torch.no_grad()
def draw(
    folder: Path, whole: identity.Identity, scenery: Scenery, generated: Array, autoencoder: Any, numbers: range
) -> None:
    """Draw batches and keep what the lower layers make of them, in fp16, as NUMBER.pt; those there are kept."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        file = folder / f"{number}.pt"
        if file.is_file():
            continue
        rng = np.random.default_rng([8, number])
        made = identity.batch(scenery, rng, generated)
        tokens = whole.vit.embeddings(identity.varied(made, rng, autoencoder, "cpu"))
        for layer in whole.vit.layers[:_LOWER]:
            tokens = layer(tokens, None)
        facts = (made.identity, made.imitates, made.class_index, made.grid)
        torch.save((tokens.half(), *(torch.from_numpy(part) for part in facts)), file.with_suffix(".draft"))
        file.with_suffix(".draft").rename(file)


def train(session: Session, folder: Path) -> None:
    model: Any = session.model
    kept = [torch.load(file, weights_only=True, mmap=True) for file in sorted(folder.glob("*.pt"))]
    for step in session:
        rng = np.random.default_rng([9, step, session.rank])
        tokens, *facts = kept[int(rng.integers(len(kept)))]
        identity.update(session, *model(tokens.float()), *facts)
