"""SDXL's text conditioning: the penultimate layer of two encoders and the second one's pooled projection.

Source: arXiv 2307.01952, section 2.1; the same states that `StableDiffusionXLPipeline.encode_prompt` reads.

A text that is longer than the encoder takes (75 tokens between CLIP's start and end tokens) is cut into chunks of that
many tokens. Each chunk is encoded with start, end and padding tokens of its own; the states of all chunks are joined
along the sequence, [77 k, C], and the pooled vector is the first chunk's. So do A1111 and ComfyUI, which draw with what
is trained here; sd-scripts drops the inner start and end tokens ([75 k + 2, C]).

Where texts of different lengths share a batch, each is repeated to the least common multiple (`align`), as in ComfyUI.
Cross-attention over a sequence repeated r times is the attention over the sequence once, so a result does not depend
on the other texts of the batch; empty padding chunks would change it, since the UNet takes no attention mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdxl_ray.config.schema import TOKEN_LENGTHS, MaxTokenLength


@dataclass(frozen=True)
class TokenIds:
    """Texts as token ids. ids_NL: int64, the chunks of all texts in order; counts: the number of chunks of each."""

    ids_NL: Tensor
    counts: tuple[int, ...]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenIds:
        """The same on another device."""
        return TokenIds(self.ids_NL.to(device, non_blocking=non_blocking), self.counts)


def chunk_tokens(tokenizer: Any) -> int:
    """Tokens of a text that one chunk holds: 75 for CLIP, without the start and the end token."""
    return int(tokenizer.model_max_length) - int(tokenizer.num_special_tokens_to_add())


def most_tokens(tokenizer: Any, max_token_length: MaxTokenLength) -> int:
    """Tokens of a text that are used at most. 75, 150, 225 stand for 1, 2, 3 chunks, also where a chunk is shorter."""
    return max_token_length // TOKEN_LENGTHS[0] * chunk_tokens(tokenizer)


def expansions(tokenizer: Any) -> dict[int, tuple[int, ...]]:
    """Of each word with several vectors (textual inversion) the ids that stand for it, by the id of the word.

    The vectors of "<dog>" are the added tokens "<dog>", "<dog>_1", ..., as diffusers adds them.
    """
    added = tokenizer.get_added_vocab()
    found = {}
    for word, first in added.items():
        ids = [first]
        while (more := added.get(f"{word}_{len(ids)}")) is not None:
            ids.append(more)
        if len(ids) > 1:
            found[first] = tuple(ids)
    return found


def tokenize(tokenizer: Any, texts: Sequence[str], max_token_length: MaxTokenLength = 75) -> TokenIds:
    """Token ids of each text in as many chunks as it needs, at most those of `max_token_length`."""
    size, most = chunk_tokens(tokenizer), most_tokens(tokenizer, max_token_length)
    chunks: list[list[int]] = []
    counts: list[int] = []
    expanded = expansions(tokenizer)
    for text in tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids:
        words = [one for token in text for one in expanded.get(token, (token,))]
        parts = [words[start : start + size] for start in range(0, min(len(words), most), size)] or [[]]
        counts.append(len(parts))
        for part in parts:
            padding = [tokenizer.pad_token_id] * (size - len(part))
            chunks.append([tokenizer.bos_token_id, *part, tokenizer.eos_token_id, *padding])
    return TokenIds(torch.tensor(chunks, dtype=torch.int64), tuple(counts))


def join(ids: Sequence[TokenIds]) -> TokenIds:
    """Those of several calls of `tokenize`, which may have had different lengths, in one."""
    return TokenIds(torch.cat([some.ids_NL for some in ids]), tuple(count for some in ids for count in some.counts))


def encode(encoder: Any, ids: TokenIds) -> tuple[list[Tensor], Tensor]:
    """Of each text the penultimate hidden states [chunks * L, C]; and of all the first chunks' first output.

    That is, for encoder 2, the pooled projection [B, P].
    """
    out = encoder(ids.ids_NL, output_hidden_states=True)
    states = [chunks_KLC.flatten(0, 1) for chunks_KLC in out.hidden_states[-2].split(ids.counts)]
    return states, torch.stack([chunks[0] for chunks in out[0].split(ids.counts)])


def align(states: Sequence[Tensor]) -> Tensor:
    """States [L_i, C] of texts of different lengths as one batch [B, L, C]: each repeated to a common length."""
    length = math.lcm(*(one.shape[0] for one in states))
    return torch.stack([one.repeat(length // one.shape[0], 1) for one in states])


@torch.no_grad()
def encode_captions(
    tokenizer: Any, encoder: Any, captions: Sequence[str], pooled: bool, max_token_length: MaxTokenLength = 75
) -> list[dict[str, Tensor]]:
    """For each caption `{"hidden": [L, C]}` on the CPU, with `"pooled": [P]` for encoder 2. No gradient."""
    device = next(encoder.parameters()).device
    states, first = encode(encoder, tokenize(tokenizer, captions, max_token_length).to(device))
    rows = [{"hidden": hidden_LC.cpu().contiguous()} for hidden_LC in states]
    if pooled:
        for row, vector in zip(rows, first, strict=True):
            row["pooled"] = vector.cpu().contiguous()
    return rows


@torch.no_grad()
def encode_prompts(
    pipe: Any, prompts: Sequence[str], max_token_length: MaxTokenLength = 75
) -> tuple[list[Tensor], Tensor]:
    """Conditioning by both encoders of a pipeline, on its device: states [L_i, C] of each prompt, and pooled [B, P]."""
    device = pipe._execution_device  # where its own `encode_prompt` computes
    parts: list[list[Tensor]] = []
    first = torch.empty(0)
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        states, first = encode(encoder, tokenize(tokenizer, prompts, max_token_length).to(device))
        parts.append(states)
    return [torch.cat(both, dim=-1).to(pipe.text_encoder_2.dtype) for both in zip(*parts, strict=True)], first
