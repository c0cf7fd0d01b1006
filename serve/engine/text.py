"""The text stage: prompts to conditioning, those of several pictures and adapters in one call of each encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdxl_ray.core.text import encode, token_count, token_ids
from serve.engine.adapter import Adapter, Strength
from serve.engine.job import Job
from serve.engine.layers import LoraLayers
from serve.engine.request import NotDrawable

PARTS = ("text_encoder", "text_encoder_2")
_Key = tuple[str, tuple[tuple[str, float], ...]]


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

    def conditioning(self, jobs: Sequence[Job]) -> list[tuple[Tensor, Tensor]]:
        """For each job hidden states [R, L, C] and pooled [R, P].

        R is 2 (unconditional, conditional), or 1 where guidance is off, as in the pipeline.
        """
        for layers in self._layers:
            if layers.stale:
                layers.activate(())
        wanted: dict[_Key, tuple[str, Sequence[Strength]]] = {}
        for job in jobs:
            wanted |= {_key(text, job.strengths): (text, job.strengths) for text in self._texts(job)}
        found = {key: self._known[key] for key in wanted if key in self._known}
        new = [key for key in wanted if key not in found]
        found |= dict(zip(new, self._encode([wanted[key] for key in new]), strict=True)) if new else {}
        for key, rows in found.items():
            self._known[key] = rows
            self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return [self._rows([found[_key(text, job.strengths)] for text in self._texts(job)], job) for job in jobs]

    def check(self, job: Job) -> None:
        """Raise NotDrawable for a text that an encoder would only see the beginning of."""
        asked = job.request
        for param, text in (("prompt", asked.prompt), ("negative_prompt", asked.negative_prompt)):
            if text is None or text not in self._texts(job):
                continue
            for tokenizer in self._tokenizers:
                tokens, most = token_count(tokenizer, text)
                if tokens > most:
                    raise NotDrawable(
                        param, f"{param} has {tokens} tokens: the text encoders take {most}; leave out {tokens - most}"
                    )

    def _texts(self, job: Job) -> list[str]:
        """What must be encoded for a job: its prompt, and its unconditional one where that is not zeros."""
        request = job.request
        if not guided(job) or (request.negative_prompt is None and self._zero_unconditional):
            return [request.prompt]
        return [request.negative_prompt or "", request.prompt]

    def _rows(self, texts: Sequence[tuple[Tensor, Tensor]], job: Job) -> tuple[Tensor, Tensor]:
        if guided(job) and len(texts) == 1:
            texts = [(torch.zeros_like(texts[0][0]), torch.zeros_like(texts[0][1])), *texts]
        return torch.stack([hidden for hidden, _ in texts]), torch.stack([pooled for _, pooled in texts])

    def _encode(self, texts: Sequence[tuple[str, Sequence[Strength]]]) -> list[tuple[Tensor, Tensor]]:
        needed: dict[str, Adapter] = {s.adapter.hash: s.adapter for _, strengths in texts for s in strengths}
        hidden: list[Tensor] = []
        first = torch.empty(0)
        for tokenizer, encoder, layers in zip(self._tokenizers, self._encoders, self._layers, strict=True):
            layers.activate(needed.values())
            layers.use(layers.masks([strengths for _, strengths in texts], self._device))
            states_BLC, first = encode(encoder, token_ids(tokenizer, [text for text, _ in texts]).to(self._device))
            hidden.append(states_BLC)
        return list(zip(torch.cat(hidden, dim=-1), first, strict=True))


def guided(job: Job) -> bool:
    """Whether a job needs an unconditional row beside the conditional one."""
    return job.request.guidance_scale > 1


def _key(text: str, strengths: Sequence[Strength]) -> _Key:
    # By hash: a name may stand for another artifact later. Adapters of the UNet alone do not change the text.
    return text, tuple((s.adapter.hash, s.scale) for s in strengths if any(s.adapter.parts.get(part) for part in PARTS))
