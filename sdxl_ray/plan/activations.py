"""What backward holds, moment by moment: the activations still kept, and the gradients already made.

Both matter together. Activations shrink while gradients grow, and which sum is the largest depends on the batch, on
checkpointing and on how ZeRO splits the gradients.
"""

from __future__ import annotations

from sdxl_ray.plan.model import LORA_RANK, Training
from sdxl_ray.plan.setting import Setting

#: An estimate: activations under autocast against those of 16-bit weights, since norms compute in fp32.
AUTOCAST_ACTIVATIONS = 1.5


def backward_moments(s: Setting) -> list[tuple[int, float]]:
    """(bytes kept for backward, share of the gradients made) along a backward of the UNet, then the text encoders."""
    checkpointing = s.recipe.parallel.gradient_checkpointing
    factor = AUTOCAST_ACTIVATIONS if s.autocast else 1.0
    records: list[tuple[Training, float, float]] = []
    for part in s.sizes.parts:
        record = s.census.train(part.part, part.mode, checkpointing)
        records.append((record, part.rank, part.trained / s.sizes.trained))
    moments: list[tuple[int, float]] = []
    before = 0.0
    for index, (record, rank, share) in enumerate(records):
        waiting = sum(_kept(s, later, later_rank)[0][0] for later, later_rank, _ in records[index + 1 :])
        made = 0.0
        for kept, done in _kept(s, record, rank):
            # Gradients of a stretch appear while it is walked: at its worst moment those before it are surely there.
            moments.append((round((kept + waiting) * factor), before + made * share))
            made = done
        before += share
        moments.append((round(waiting * factor), before))
    return moments


def _kept(s: Setting, record: Training, rank: float) -> list[tuple[int, float]]:
    more = 0.0
    if record.mode != "full":
        more = (rank - LORA_RANK) * record.per_rank.at(s.micro_batch, s.latent_pixels, s.width)
    return [
        (max(0, round(segment.live.at(s.micro_batch, s.latent_pixels, s.width) + more)), segment.gradients)
        for segment in record.segments
    ]
