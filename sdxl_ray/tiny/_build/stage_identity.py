"""Stage "identity": a small ViT that says "the same thing" and is not fooled by colours and texture.

A batch holds designs (drawings as drawn, recoloured, patterned, wearing something) of a few kinds, each on other
places, in other sizes, tilts and light, with decoys of every kind made of each design itself and images of a
generator that cannot draw yet. `ranking` says how alike any two of them should be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sdxl_ray.tiny._build.ranking import Pairs, cosines
from sdxl_ray.tiny._build.jitter import jittered, recoded
from sdxl_ray.tiny._build.session import Session
from sdxl_ray.tiny._build.scene_store import SceneArray
from sdxl_ray.tiny._build.catalog import ACCESSORIES, CLASSES, COLORS, PATTERNS
from sdxl_ray.tiny._build.places import PLACES
from sdxl_ray.tiny._build.scenes import DECOYS, EDGE, GRID, NOTHING, Scenery, decoy, random_poses

_GROUPS, _VIEWS, _GENERATED = 4, 3, 8
_FURTHER = 0.6  # share of groups, but for one, that are of a further kind
_WIDTH = 128


class Identity(nn.Module):
    """The shipped ViT (its class token is the embedding) and the heads that only training needs, for so many kinds."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.vit = vit()
        self.kinds = nn.Linear(_WIDTH, kinds + 1)
        self.patches = nn.Linear(_WIDTH, NOTHING + 1)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(class token [B, 128], patch tokens [B, 64, 128])."""
        tokens = self.vit(pixel_values=pixels).last_hidden_state
        return tokens[:, 0], tokens[:, 1:]


def vit() -> Any:
    """The `transformers.ViTModel` that is shipped, untrained."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=_WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=3 * _WIDTH,
        image_size=EDGE,
        patch_size=EDGE // GRID,
    )
    return ViTModel(config, add_pooling_layer=False)


def any_look(rng: np.random.Generator) -> dict[str, str]:
    """What may be done to a drawing, a far wider choice than the generator sees, so that no new design is special."""
    chance = rng.random()
    if chance < 0.3:
        return {}
    color, second = (str(name) for name in rng.choice(list(COLORS), 2, replace=False))
    look = {"color": color, "accessory": str(rng.choice(list(ACCESSORIES))) if rng.random() < 0.2 else ""}
    return look if chance < 0.55 else look | {"pattern": str(rng.choice(PATTERNS)), "second": second}


@dataclass(frozen=True)
class IdentityBatch:
    """Images [B, 64, 64, 3] and, for each: who it is, what it imitates (-1: nothing), its kind, its cells [8, 8].

    Kinds are numbered as the scenery lists them, those after the classes one higher. Decoys and generated images are
    somebody of their own and of no kind (NOTHING, -100 where nobody knows).
    """

    pixels: SceneArray
    identity: SceneArray
    imitates: SceneArray
    kind: SceneArray
    grid: SceneArray


def batch(scenery: Scenery, rng: np.random.Generator, generated: SceneArray | None) -> IdentityBatch:
    """Groups of one kind each: a drawing as drawn and others, all on the same few places, and decoys of each.

    One of the others has the look that every group of the batch shares: colours and patterns are nobody's own.
    """
    rows: list[tuple[SceneArray, int, int, int, SceneArray]] = []
    unknown = np.full((GRID, GRID), 255, np.uint8)
    count = 0
    shared = any_look(rng)
    for kind_index in _some(rng, len(scenery.kinds)):
        kind = scenery.kinds[kind_index]
        places = [str(place) for place in rng.choice(list(PLACES), _VIEWS, replace=False)]
        is_class = kind_index < len(CLASSES)
        index = kind_index if is_class else kind_index + 1
        # How a drawing as drawn compares with its recoloured siblings is what a subject is scored by.
        looks: tuple[dict[str, str], ...] = ({}, any_look(rng), shared)
        for design in dict.fromkeys(replace(scenery.random_design(rng, kind, plain=True), **look) for look in looks):
            figure = scenery.draw(design)
            whose = count
            for place in places:
                named = (design,) if is_class else ()
                shown, grid = scenery.place([figure], random_poses(1, rng), place, rng, EDGE, named)
                rows.append((np.asarray(shown), whose, -1, index, grid if is_class else unknown))
            for name in DECOYS:
                count += 1
                false = decoy(figure, name, rng)
                shown, _ = scenery.place([false], random_poses(1, rng), str(rng.choice(places)), rng)
                rows.append((np.asarray(shown), count, whose, NOTHING, unknown))
            count += 1
    if generated is not None:
        picked = generated[rng.choice(len(generated), _GENERATED, replace=False)]
        rows += [(pixels, count + number, -1, -100, unknown) for number, pixels in enumerate(picked)]
    return IdentityBatch(*(np.stack(column) for column in zip(*rows, strict=True)))


def _some(rng: np.random.Generator, kinds: int) -> list[int]:
    """Indices of the kinds of a batch's groups, each once."""
    classes, further = rng.permutation(len(CLASSES)), len(CLASSES) + rng.permutation(kinds - len(CLASSES))
    # One class at least: only its cells have names to learn.
    taken = min(len(further), int(rng.binomial(_GROUPS - 1, _FURTHER)))
    return [int(index) for index in (*further[:taken], *classes[: _GROUPS - taken])]


def train(session: Session, scenery: Scenery, generated: SceneArray | None, autoencoder: Any, device: str) -> None:
    """`generated`: images [N, 64, 64, 3] of a generator that cannot draw yet: each is nobody."""
    model: Any = session.model
    for step in session:
        rng = np.random.default_rng([8, step, session.rank])
        made = batch(scenery, rng, generated)
        pixels = torch.from_numpy(made.pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        whole, patches = model(jittered(recoded(pixels, rng, autoencoder), rng))
        facts = (made.identity, made.imitates, made.kind, made.grid)
        update(session, whole, patches, *(torch.from_numpy(part).to(device) for part in facts))


def update(
    session: Session,
    whole: torch.Tensor,
    patches: torch.Tensor,
    owner: torch.Tensor,
    imitates: torch.Tensor,
    kinds: torch.Tensor,
    grid: torch.Tensor,
) -> None:
    """One step on the class tokens [B, 128] and patch tokens [B, 64, 128] of a batch."""
    model: Any = session.model
    pairs = Pairs.of(owner, imitates, kinds, NOTHING)
    alike = cosines(whole)
    contrast = pairs.contrast(alike)
    levels = pairs.levels(alike)
    named = functional.cross_entropy(model.kinds(whole), kinds)
    cells = grid.long().flatten()
    covered = functional.cross_entropy(model.patches(patches).flatten(0, 1), cells, ignore_index=255)
    loss = contrast + sum(levels.values()) + named + covered
    shown = {"contrast": float(contrast.detach()), "named": float(named.detach()), "covered": float(covered.detach())}
    session.update(loss, len(whole), **shown, **pairs.means(alike))
