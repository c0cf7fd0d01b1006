"""The text stage: prompts to conditioning, those of several images and adapters in one call of each encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdxl_ray.config.schema import MaxTokenLength
from sdxl_ray.models.text_encoders import align, encode, join, tokenize
from sdxl_ray.models.truncation import truncations
from serve.engine.adapter import AdapterStrength, LoadedAdapter
from serve.engine.image_job import RequestJob
from serve.engine.multi_lora import LoraLayers
from serve.engine.request import Truncated

PARTS = ("text_encoder", "text_encoder_2")
_Key = tuple[str, tuple[tuple[str, float], ...], int]


@dataclass(frozen=True)
class _Text:
    """What the encoders are asked: words, under adapters, up to so many tokens."""

    words: str
    strengths: Sequence[AdapterStrength]
    max_token_length: MaxTokenLength


class TextEncoder:
    """Both encoders with their adapters and a memory of the last prompts. Used by one thread."""

    def __init__(self, pipe: Any, cached_prompts: int) -> None:
        self._tokenizers = (pipe.tokenizer, pipe.tokenizer_2)
        self._encoders = (pipe.text_encoder, pipe.text_encoder_2)
        self._layers = tuple(LoraLayers(e, part) for e, part in zip(self._encoders, PARTS, strict=True))
        self._zero_unconditional = bool(pipe.config.force_zeros_for_empty_prompt)
        self._device = next(pipe.text_encoder.parameters()).device
        self._most = cached_prompts
        self._known: OrderedDict[_Key, tuple[Tensor, Tensor]] = OrderedDict()

    def conditioning(self, jobs: Sequence[RequestJob]) -> list[tuple[Tensor, Tensor]]:
        """For each job hidden states [R, L, C] and pooled [R, P].

        R is 2 (unconditional, conditional), or 1 where guidance is off, as in the pipeline.
        """
        for layers in self._layers:
            if layers.stale:
                layers.activate(())
        wanted: dict[_Key, _Text] = {}
        for job in jobs:
            wanted |= {_key(text): text for text in self._texts(job)}
        found = {key: self._known[key] for key in wanted if key in self._known}
        new = [key for key in wanted if key not in found]
        found |= dict(zip(new, self._encode([wanted[key] for key in new]), strict=True)) if new else {}
        for key, rows in found.items():
            self._known[key] = rows
            self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return [self._rows([found[_key(text)] for text in self._texts(job)], job) for job in jobs]

    def truncated(self, job: RequestJob) -> dict[str, Truncated]:
        """Of each text of a job that the encoders see the beginning of alone, what they do not see."""
        asked = job.request
        used = {text.words for text in self._texts(job)}
        fields = {"prompt": asked.prompt, "negative_prompt": asked.negative_prompt}
        cuts = truncations(self._tokenizers, used, asked.max_token_length)
        return {
            name: Truncated(cuts[words].tokens, cuts[words].used, cuts[words].lost)
            for name, words in fields.items()
            if words is not None and words in cuts
        }

    def _texts(self, job: RequestJob) -> list[_Text]:
        """What must be encoded for a job: its prompt, and its unconditional one where that is not zeros."""
        request = job.request
        texts = [request.prompt]
        if guided(job) and not (request.negative_prompt is None and self._zero_unconditional):
            texts.insert(0, request.negative_prompt or "")
        return [_Text(words, job.strengths, request.max_token_length) for words in texts]

    def _rows(self, texts: Sequence[tuple[Tensor, Tensor]], job: RequestJob) -> tuple[Tensor, Tensor]:
        if guided(job) and len(texts) == 1:
            texts = [(torch.zeros_like(texts[0][0]), torch.zeros_like(texts[0][1])), *texts]
        return align([hidden for hidden, _ in texts]), torch.stack([pooled for _, pooled in texts])

    def _encode(self, texts: Sequence[_Text]) -> list[tuple[Tensor, Tensor]]:
        needed: dict[str, LoadedAdapter] = {s.adapter.hash: s.adapter for text in texts for s in text.strengths}
        parts: list[list[Tensor]] = []
        first = torch.empty(0)
        for tokenizer, encoder, layers in zip(self._tokenizers, self._encoders, self._layers, strict=True):
            ids = join([tokenize(tokenizer, [text.words], text.max_token_length) for text in texts])
            rows = [text.strengths for text, count in zip(texts, ids.counts, strict=True) for _ in range(count)]
            layers.activate(needed.values())
            layers.use(layers.masks(rows, self._device))
            states, first = encode(encoder, ids.to(self._device))
            parts.append(states)
        return [(torch.cat(both, dim=-1), pooled) for both, pooled in zip(zip(*parts, strict=True), first, strict=True)]


def guided(job: RequestJob) -> bool:
    """Whether a job needs an unconditional row beside the conditional one."""
    return job.request.guidance_scale > 1


def _key(text: _Text) -> _Key:
    # By hash: a name may stand for another artifact later. Adapters of the UNet alone do not change the text.
    strengths = tuple((s.adapter.hash, s.scale) for s in text.strengths if any(s.adapter.parts.get(p) for p in PARTS))
    return text.words, strengths, text.max_token_length
