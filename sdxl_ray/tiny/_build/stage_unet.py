"""Stage "unet": epsilon prediction on cached latents, min-SNR 5 (arXiv 2303.09556), guidance dropout, EMA."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from sdxl_ray.tiny._build.session import Session
from sdxl_ray.tiny._build.scene_store import Store
from sdxl_ray.tiny.vocabulary import END, bpe

_BATCH = 32
_DROPPED = 0.1
_GAMMA = 5.0
#: Full captions mostly; the class alone as often as DreamBooth's prior needs it.
_CAPTION_ODDS = (0.44, 0.44, 0.12)


@torch.no_grad()
def conditioning(pair: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SDXL's text conditioning: penultimate layers [B, 32, 192] of both encoders, pooled vector [B, 128]."""
    first = pair.first(input_ids=ids, output_hidden_states=True)
    second = pair.clip.text_model(input_ids=_repadded(ids), output_hidden_states=True)
    text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    return text, pair.clip.text_projection(second.pooler_output)


def _repadded(ids: torch.Tensor) -> torch.Tensor:
    """What SDXL's second tokenizer gives: "!" instead of more end tokens."""
    vocabulary, _ = bpe()
    behind = (ids == vocabulary[END]).cumsum(1) > 1
    return ids.masked_fill(behind, vocabulary["!"])


def train(
    session: Session, store: Store, latents: tuple[torch.Tensor, torch.Tensor], pair: nn.Module, scheduler: Any
) -> None:
    """`latents` are (means, deviations) [N, 4, 16, 16]; the scheduler gives the noise levels."""
    unet = session.model
    device = next(unet.parameters()).device
    means, deviations = latents
    signal = scheduler.alphas_cumprod.to(device)
    for step in session:
        rng = np.random.default_rng([7, step, session.rank])
        index = np.sort(rng.choice(len(store), _BATCH, replace=False))
        torch.manual_seed(int(rng.integers(2**31)))
        which = rng.choice(len(_CAPTION_ODDS), _BATCH, p=_CAPTION_ODDS)
        ids = torch.from_numpy(store.tokens[index, which].astype(np.int64)).to(device)
        text, pooled = conditioning(pair, ids)
        kept = (torch.rand(_BATCH, device=device) >= _DROPPED).float()
        times = torch.from_numpy(store.time_ids[index].astype(np.float32)).to(device)
        added = {"text_embeds": pooled * kept[:, None], "time_ids": times}
        mean, deviation = (part[index].to(device).float() for part in (means, deviations))
        clean = mean + deviation * torch.randn_like(mean)
        noise = torch.randn_like(clean)
        # Stratified over the batch: fewer lucky and unlucky batches than independent draws.
        level = ((torch.arange(_BATCH) + torch.rand(_BATCH)) / _BATCH * len(signal)).long().to(device)
        share = signal[level][:, None, None, None]
        noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        predicted = unet(noisy, level, text * kept[:, None, None], added_cond_kwargs=added, return_dict=False)[0]
        error = (predicted - noise).square().mean((1, 2, 3))
        ratio = signal[level] / (1 - signal[level])
        weighted = (error * ratio.clamp(max=_GAMMA) / ratio).mean()
        session.update(weighted, _BATCH, plain=float(error.detach().mean()))
