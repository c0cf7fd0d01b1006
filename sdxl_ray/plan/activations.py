"""What backward holds, moment by moment: the activations still kept, and the gradients already made.

Both matter together. Activations shrink while gradients grow, and which sum is the largest depends on the batch, on
checkpointing and on how ZeRO splits the gradients.
"""

from __future__ import annotations

import math

from sdxl_ray.plan.profile import LORA_RANK, TrainingProfile
from sdxl_ray.plan.setting import RunShape

#: An estimate: activations under autocast against those of 16-bit weights, since norms compute in fp32.
AUTOCAST_ACTIVATIONS = 1.5


def backward_moments(s: RunShape) -> list[tuple[int, float]]:
    """(bytes kept for backward, share of the gradients made) along a backward of the UNet, then the text encoders."""
    checkpointing = s.recipe.parallel.gradient_checkpointing
    factor = AUTOCAST_ACTIVATIONS if s.autocast else 1.0
    records: list[tuple[list[tuple[int, float]], float]] = []
    for part in s.sizes.parts:
        record = s.profile.train(part.part, part.mode, checkpointing)
        records.append((_kept(s, part.part, record, part.rank), part.trained / s.sizes.trained))
    moments: list[tuple[int, float]] = []
    before = 0.0
    for index, (segments, share) in enumerate(records):
        waiting = sum(later[0][0] for later, _ in records[index + 1 :])
        made = 0.0
        for kept, done in segments:
            # Gradients of a stretch appear while it is walked: at its worst moment those before it are surely there.
            moments.append((round((kept + waiting) * factor), before + made * share))
            made = done
        before += share
        moments.append((round(waiting * factor), before))
    return moments


def _kept(s: RunShape, part: str, record: TrainingProfile, rank: float) -> list[tuple[int, float]]:
    more = 0.0
    if record.mode != "full":
        more = (rank - LORA_RANK) * record.per_rank.at(s.micro_batch, s.latent_pixels, s.width)
    rows = s.micro_batch
    if part != "unet":
        rows *= s.text_chunks
    elif not record.checkpointing:
        more += _longer_text(s)
    return [
        (max(0, round(segment.live.at(rows, s.latent_pixels, s.width) + more)), segment.gradients)
        for segment in record.segments
    ]


def _longer_text(s: RunShape) -> int:
    """Bytes of the UNet's text keys and values beyond those of one chunk, where captions of all lengths are mixed."""
    numbers = sum(layer.outputs for layer, _ in s.profile.components["unet"].adapted(("attn2.to_k", "attn2.to_v")))
    repeated = math.lcm(*range(1, s.text_chunks + 1))  # see core.text.align
    return s.micro_batch * numbers * (repeated - 1) * s.profile.text_tokens * s.width
