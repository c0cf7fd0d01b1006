"""SDXL's text conditioning: the penultimate layer of two encoders and the second one's pooled projection.

Source: arXiv 2307.01952, section 2.1; the same states that `StableDiffusionXLPipeline.encode_prompt` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def token_ids(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token ids int64 [B, L], padded and cut to the tokenizer's length."""
    words = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = words.input_ids
    return ids


def token_count(tokenizer: Any, caption: str) -> tuple[int, int]:
    """Tokens of a caption, and how many the encoder takes: `token_ids` cuts off what is beyond."""
    tokens = len(tokenizer(caption, add_special_tokens=False, verbose=False).input_ids)
    return tokens, int(tokenizer.model_max_length) - int(tokenizer.num_special_tokens_to_add())


def encode(encoder: Any, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Penultimate hidden states [B, L, C] and the first output: for encoder 2 the pooled projection [B, P]."""
    out = encoder(ids_BL, output_hidden_states=True)
    return out.hidden_states[-2], out[0]


@torch.no_grad()
def encode_captions(tokenizer: Any, encoder: Any, captions: Sequence[str], pooled: bool) -> list[dict[str, Tensor]]:
    """For each caption `{"hidden": [L, C]}` on the CPU, with `"pooled": [P]` for encoder 2. No gradient."""
    device = next(encoder.parameters()).device
    hidden_BLC, first = encode(encoder, token_ids(tokenizer, captions).to(device))
    rows = [{"hidden": hidden.cpu().contiguous()} for hidden in hidden_BLC]
    if pooled:
        for row, vector in zip(rows, first, strict=True):
            row["pooled"] = vector.cpu().contiguous()
    return rows
