"""Stage "identity": a small ViT that says "the same thing" and is not fooled by colours and texture.

Supervised contrastive learning (arXiv 2004.11362) at two levels: designs (drawings, recoloured, patterned, wearing
something) closely, classes loosely, so that another thing of the class is nearer than a thing of another class. The
same design on other places, in other sizes, tilts and light is a match; other designs on the same places, decoys made
of the design itself, and pictures of a half-trained generator are not, and decoys are pushed away by themselves too:
they are few, but they are what fools a score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sdxl_ray.tiny.builder.clip import _jittered
from sdxl_ray.tiny.builder.session import Session
from sdxl_ray.tiny.builder.store import Array
from sdxl_ray.tiny.catalog import ACCESSORIES, CLASSES, COLORS, PATTERNS, Design
from sdxl_ray.tiny.places import PLACES
from sdxl_ray.tiny.scenes import DECOYS, EDGE, GRID, NOTHING, Scenery, decoy, random_poses

_GROUPS, _SIBLINGS, _VIEWS, _GENERATED = 6, 3, 3, 10
_TEMPERATURE, _CLASS_TEMPERATURE = 0.1, 0.25
_CLASS_WEIGHT, _DECOY_WEIGHT = 0.5, 4.0
_WIDTH = 128


class Identity(nn.Module):
    """The shipped ViT (its class token is the embedding) and the heads that only training needs."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(
            hidden_size=_WIDTH,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=3 * _WIDTH,
            image_size=EDGE,
            patch_size=EDGE // GRID,
        )
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.classes = nn.Linear(_WIDTH, NOTHING + 1)
        self.patches = nn.Linear(_WIDTH, NOTHING + 1)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(class token [B, 128], patch tokens [B, 64, 128])."""
        tokens = self.vit(pixel_values=pixels).last_hidden_state
        return tokens[:, 0], tokens[:, 1:]


def any_design(scenery: Scenery, rng: np.random.Generator, class_name: str) -> Design:
    """A look of a class from a far wider choice than the generator sees, so that new designs are nothing special."""
    plain = scenery.random_design(rng, class_name, plain=True)
    chance = rng.random()
    if chance < 0.3:
        return plain
    color, second = (str(name) for name in rng.choice(list(COLORS), 2, replace=False))
    worn = str(rng.choice(list(ACCESSORIES))) if rng.random() < 0.2 else ""
    if chance < 0.55:
        return Design(class_name, plain.set_name, color, accessory=worn)
    return Design(class_name, plain.set_name, color, str(rng.choice(PATTERNS)), second, worn)


@dataclass(frozen=True)
class Batch:
    """Pictures [B, 64, 64, 3] and, for each: who it is, what it imitates (-1: nothing), its class, its cells [8, 8].

    Decoys and generated pictures are somebody of their own and of no class (NOTHING, -100 where nobody knows).
    """

    pixels: Array
    identity: Array
    imitates: Array
    class_index: Array
    grid: Array


def batch(scenery: Scenery, rng: np.random.Generator, generated: Array | None) -> Batch:
    """Groups of one class each: several designs, all seen on the same few places, and a decoy of every design."""
    rows: list[tuple[Array, int, int, int, Array]] = []
    unknown = np.full((GRID, GRID), 255, np.uint8)
    count = 0
    for class_name in rng.choice(CLASSES, _GROUPS, replace=False):
        places = [str(place) for place in rng.choice(list(PLACES), _VIEWS, replace=False)]
        index = CLASSES.index(str(class_name))
        for design in {any_design(scenery, rng, str(class_name)): None for _ in range(_SIBLINGS)}:
            figure = scenery.draw(design)
            for place in places:
                shown, grid = scenery.place([figure], random_poses(1, rng), place, rng, EDGE, (design,))
                rows.append((np.asarray(shown), count, -1, index, grid))
            false = decoy(figure, str(rng.choice(DECOYS)), rng)
            shown, _ = scenery.place([false], random_poses(1, rng), str(rng.choice(places)), rng)
            rows.append((np.asarray(shown), count + 1, count, NOTHING, unknown))
            count += 2
    if generated is not None:
        picked = generated[rng.choice(len(generated), _GENERATED, replace=False)]
        rows += [(pixels, count + number, -1, -100, unknown) for number, pixels in enumerate(picked)]
    return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))


def train(session: Session, scenery: Scenery, generated: Array | None, device: str) -> None:
    """`generated`: pictures [N, 64, 64, 3] of a half-trained generator: each is nobody."""
    model: Any = session.model
    for step in session:
        rng = np.random.default_rng([8, step])
        made = batch(scenery, rng, generated)
        pixels = torch.from_numpy(made.pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        whole, patches = model(_jittered(pixels, rng))
        owner, imitates, classes = (
            torch.from_numpy(part).to(device) for part in (made.identity, made.imitates, made.class_index)
        )
        real = (classes >= 0) & (classes < NOTHING)
        alone = torch.arange(len(classes), device=device) + NOTHING + 1  # who is of no class matches nobody
        contrast, right = supervised_contrast(whole, owner, _TEMPERATURE)
        loosely, _ = supervised_contrast(whole, torch.where(real, classes, alone), _CLASS_TEMPERATURE)
        fooled = decoy_similarity(whole, owner, imitates)
        named = functional.cross_entropy(model.classes(whole), classes)
        cells = torch.from_numpy(made.grid.astype(np.int64)).to(device).flatten()
        covered = functional.cross_entropy(model.patches(patches).flatten(0, 1), cells, ignore_index=255)
        loss = contrast + _CLASS_WEIGHT * loosely + _DECOY_WEIGHT * fooled + 0.3 * named + 0.5 * covered
        shown = {"contrast": float(contrast.detach()), "decoy": float(fooled.detach()), "nearest": right}
        session.update(loss, len(pixels), **shown)


def decoy_similarity(vectors: torch.Tensor, owner: torch.Tensor, imitates: torch.Tensor) -> torch.Tensor:
    """How far decoys are from being unlike what they imitate: their mean positive cosine to it."""
    unit = functional.normalize(vectors, dim=-1)
    pairs = imitates[:, None] == owner[None]
    return (unit @ unit.T).clamp(min=0)[pairs].mean()


def supervised_contrast(vectors: torch.Tensor, owner: torch.Tensor, temperature: float) -> tuple[torch.Tensor, float]:
    """(loss, share of pictures with a match whose nearest neighbour is one)."""
    unit = functional.normalize(vectors, dim=-1)
    alike = unit @ unit.T
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    same = (owner[:, None] == owner[None]) & ~itself
    log_share = (alike / temperature).masked_fill(itself, -1e9).log_softmax(-1)
    has = same.any(1)
    loss = -(log_share * same).sum(1)[has] / same.sum(1)[has]
    nearest = alike.masked_fill(itself, -2).argmax(1)
    right = same.gather(1, nearest[:, None])[has].float().mean()
    return loss.mean(), float(right)
