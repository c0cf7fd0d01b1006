"""Stages "clip" (both text encoders and the image encoder) and "vision" (the image encoder alone, longer).

Contrastive learning of captions and scenes (arXiv 2103.00020) with three helps that a small model needs: every caption
that is true of a scene counts as its match; heads name the facts of the scene and of the caption; and each patch names
the class that covers it. Decoys (colours and texture without the shape) are scenes that no caption fits, and noise is
like no scene either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sdxl_ray.tiny._build.jitter import jittered, recoded
from sdxl_ray.tiny._build.session import Session
from sdxl_ray.tiny._build.scene_store import CAPTIONS, LOOKS, SceneArray, Store
from sdxl_ray.tiny._build.stage_vae import images
from sdxl_ray.tiny._build.catalog import CLASSES
from sdxl_ray.tiny._build.layout import POOLED, configs
from sdxl_ray.tiny._build.places import PLACES
from sdxl_ray.tiny._build.scenes import EDGE, GRID, NOTHING

_BATCH = 48
_DECOYS = 8
_NOISE = 4
_GRAINS = (1, 2, 4, 8)
_WIDTH, _LAYERS, _HEADS = 128, 6, 4
_UNSAID = -1


class FactHeads(nn.Module):
    """Names what a vector says: the classes (any number), the place, the look."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes, self.place, self.look = (
            nn.Linear(width, size) for size in (len(CLASSES), len(PLACES), len(LOOKS))
        )

    def loss(self, vector: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        """`facts` [B, 4] as in the store; _UNSAID places and looks are not asked for."""
        present = functional.one_hot(facts[:, :2].long(), NOTHING + 1).amax(1)[:, :NOTHING].float()
        named = functional.binary_cross_entropy_with_logits(self.classes(vector), present) * 8
        place = functional.cross_entropy(self.place(vector), facts[:, 2].long(), ignore_index=_UNSAID)
        look = functional.cross_entropy(self.look(vector), facts[:, 3].long(), ignore_index=_UNSAID)
        return named + 0.5 * place + 0.5 * look


class ClipPair(nn.Module):
    """The CLIP-style pair that is shipped, SDXL's first text encoder, and the heads that only training needs."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig

        parts = configs()
        vision = CLIPVisionConfig(
            hidden_size=_WIDTH,
            intermediate_size=3 * _WIDTH,
            num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS,
            image_size=EDGE,
            patch_size=EDGE // GRID,
            projection_dim=POOLED,
            hidden_act="gelu",
        )
        text = CLIPTextConfig(**parts["text_encoder_2"])
        both = CLIPConfig(text_config=text, vision_config=vision, projection_dim=POOLED)
        self.clip = CLIPModel(both)
        self.first = CLIPTextModel(CLIPTextConfig(**parts["text_encoder"]))
        self.first_projection = nn.Linear(self.first.config.hidden_size, POOLED, bias=False)
        self.text_facts, self.first_facts, self.image_facts = FactHeads(POOLED), FactHeads(POOLED), FactHeads(POOLED)
        self.patches = nn.Linear(_WIDTH, NOTHING + 1)
        with torch.no_grad():
            self.clip.logit_scale.fill_(float(np.log(10)))

    def images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(embedding [B, 128], logits of each patch's class [B, 64, 25])."""
        seen = self.clip.vision_model(pixel_values=pixels)
        return self.clip.visual_projection(seen.pooler_output), self.patches(seen.last_hidden_state[:, 1:])

    def texts(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [B, 128] by the shipped text tower and by SDXL's first text encoder."""
        second = self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output)
        return second, self.first_projection(self.first(input_ids=ids).pooler_output)


def train(session: Session, store: Store, decoys: SceneArray, device: str, autoencoder: Any = None) -> None:
    """With `autoencoder`, the image encoder alone is trained, and a share of its images goes through that first."""
    vision_only = autoencoder is not None
    pair: Any = session.model
    odds = looked(store) if vision_only else None
    for step in session:
        rng = np.random.default_rng([6, step, int(vision_only), session.rank])
        index = np.sort(rng.choice(len(store), _BATCH, replace=False, p=odds))
        false = torch.from_numpy(decoys[np.sort(rng.choice(len(decoys), _DECOYS, replace=False))])
        false = false.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        which = rng.choice(CAPTIONS, _BATCH, p=[0.38, 0.37, 0.25])
        ids = torch.from_numpy(store.tokens[index, which].astype(np.int64)).to(device)
        facts = torch.from_numpy(store.facts[index].astype(np.int64)).to(device)
        said = facts.clone()
        said[torch.from_numpy(~store.said[index, which]).to(device), 2] = _UNSAID
        said[torch.from_numpy(which == CAPTIONS - 1).to(device), 3] = _UNSAID

        shown = torch.cat([images(store, index, device), false])
        if vision_only:
            shown = recoded(shown, rng, autoencoder)
        shown = jittered(torch.cat([shown, _noise(rng).to(device)]), rng)
        embedded, patches = pair.images(shown)
        embedded, noise, patches = embedded[:-_NOISE], embedded[-_NOISE:], patches[:-_NOISE]
        truth = torch.cat([facts, torch.full((_DECOYS, 4), NOTHING, device=device)])
        truth[_BATCH:, 2:] = _UNSAID
        grid = torch.from_numpy(store.grid[index].astype(np.int64)).to(device).flatten(1)
        grid = torch.cat([grid, torch.full((_DECOYS, GRID * GRID), NOTHING, device=device)])
        loss = pair.image_facts.loss(embedded, truth)
        loss = loss + functional.cross_entropy(patches.flatten(0, 1), grid.flatten(), ignore_index=255)
        matches = _true_of(said, truth)
        with torch.set_grad_enabled(not vision_only):
            second, first = pair.texts(ids)
        contrast = contrastive(second, embedded, noise, pair.clip.logit_scale, matches)
        loss = loss + contrast
        if not vision_only:
            loss = loss + contrastive(first, embedded, noise, pair.clip.logit_scale, matches)
            loss = loss + pair.text_facts.loss(second, said) + pair.first_facts.loss(first, said)
        right = (pair.image_facts.classes(embedded[:_BATCH]).argmax(1) == facts[:, 0])[facts[:, 0] < NOTHING]
        session.update(loss, _BATCH, contrast=float(contrast.detach()), right=float(right.float().mean()))
        with torch.no_grad():
            pair.clip.logit_scale.clamp_(max=float(np.log(50)))


def looked(store: Store) -> SceneArray:
    """Odds [N] of scenes with which half of those drawn are recoloured or patterned: a subject is."""
    special = store.facts[:, 3] > 0
    odds: SceneArray = np.where(special, 0.5 / max(1, special.sum()), 0.5 / max(1, (~special).sum()))
    odds /= odds.sum()
    return odds


def _noise(rng: np.random.Generator) -> torch.Tensor:
    """float32 [_NOISE, 3, 64, 64], -1 to 1: uniform noise, each image in grains of another size."""
    grains = rng.choice(_GRAINS, _NOISE, replace=False)
    fine = [rng.uniform(-1, 1, (3, EDGE // grain, EDGE // grain)).astype(np.float32) for grain in grains]
    return torch.stack(
        [
            torch.from_numpy(one).repeat_interleave(grain, 1).repeat_interleave(grain, 2)
            for one, grain in zip(fine, grains, strict=True)
        ]
    )


def contrastive(
    texts: torch.Tensor, seen: torch.Tensor, noise: torch.Tensor, scale: torch.Tensor, matches: torch.Tensor
) -> torch.Tensor:
    """Cross entropy both ways; a target is spread evenly over the matches [T, P]; images without one only repel.

    Noise [N, D] repels texts and images alike: no caption and no scene is like it.
    """
    texts, seen, noise = (functional.normalize(vectors, dim=-1) for vectors in (texts, seen, noise))
    target = matches.float()
    matched = target.sum(0) > 0
    by_text = functional.cross_entropy(
        scale.exp() * texts @ torch.cat([seen, noise]).T,
        functional.pad(target / target.sum(1, keepdim=True), (0, len(noise))),
    )
    columns = target[:, matched]
    by_image = functional.cross_entropy(
        scale.exp() * seen[matched] @ torch.cat([texts, noise]).T,
        functional.pad((columns / columns.sum(0)).T, (0, len(noise))),
    )
    return by_text + by_image


def _true_of(said: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """[T, P]: the caption's classes are the scene's, and so are the place and look as far as it says them."""
    classes = (said[:, None, :2].sort(-1).values == truth[None, :, :2].sort(-1).values).all(-1)
    rest = (said[:, None, 2:] == _UNSAID) | (said[:, None, 2:] == truth[None, :, 2:])
    return classes & rest.all(-1) & (truth[None, :, 2] != _UNSAID)
