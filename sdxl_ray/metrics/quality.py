"""Quality: one number that says how good a tuned model is, for whatever has to choose: a run, a search, a report.

    quality = learnt x obeyed x kept                          # 0: no better than the base; 1: nothing left to wish for

- learnt: how far subject fidelity (DINO-I) went from the base (0) to real photos of the subject against each other (1).
- obeyed: 1 less the prompt fidelity (CLIP-T) that was lost against the base, as a share of what a wrong caption loses.
- kept: mean of four shares of what the base could do: its class does not look like the subject (PRES), its class
  images are still the same kind (KID), it denoises them as well (prior loss), images of one prompt differ (DIV).

A product, because subject fidelity alone rewards overfitting (arXiv 2208.12242, section 4.3): what draws nothing but
its photos, whatever the prompt, is worth nothing. The four of `kept` are a mean: each sees one loss from another side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from sdxl_ray.errors import UserError

#: A score with its 95 % interval: (value, low, high); the bounds are None where there was nothing to draw again.
Measured = tuple[float, float | None, float | None]

#: What `quality` cannot do without. The parts of `kept` that were not measured are left out of their mean.
NEEDED = ("dino_i", "clip_t")
#: The kernel (x.y + 1)^3 of an image with itself: where KID would be if nothing of the class were left.
_FULL_KID = 8.0
#: Cosine of images to their own captions less that to wrong ones: about .12 under CLIP ViT-B/32, and .6 under the
#: embedded base's pair (its card).
_CAPTION_SPANS = {"tiny-clip": 0.6, "clip-vit-b32": 0.12}
#: The share of it that people see: .05 under CLIP ViT-B/32 (arXiv 2208.12242).
_VISIBLE = 5 / 12


@dataclass(frozen=True)
class References:
    """What a model's scores are held against. base: the base's own scores; ceiling: DINO-I of real photos.

    clip: the encoder of CLIP-T, whose scale it has.
    """

    base: Mapping[str, float]
    ceiling: float
    clip: str = ""


def visible_loss(clip: str) -> float:
    """The loss of prompt fidelity that people see, on the scale of the encoder `clip`."""
    return _VISIBLE * _span(clip)


def learnt(dino_i: float, base: float, ceiling: float) -> float:
    """How much of the way from the base to real photos: 0 the base, 1 as alike as photos are. Not clipped."""
    return (dino_i - base) / (ceiling - base) if ceiling > base else 0.0


def composite(scores: Mapping[str, float], references: References) -> float:
    """The quality of a model with these scores, in [0, 1]. Raises KeyError when one of `NEEDED` is missing."""
    base, ceiling = references.base, references.ceiling
    obeyed = 1 - max(base["clip_t"] - scores["clip_t"], 0.0) / _span(references.clip)
    way = _share(learnt(scores["dino_i"], base["dino_i"], ceiling))
    return way * _share(obeyed) * fmean(_kept(scores, references) or [1.0])


def quality(measured: Mapping[str, Measured], references: References) -> Measured:
    """The composite with an interval: each score in turn at its bounds, the changes combined as if independent.

    The references are taken as they are, so intervals compare models that were held against the same ones.
    """
    values = {name: score[0] for name, score in measured.items()}
    value, below, above = composite(values, references), 0.0, 0.0
    for name, (_, low, high) in measured.items():
        if low is None or high is None:
            continue
        ends = [composite({**values, name: bound}, references) - value for bound in (low, high)]
        below, above = math.hypot(below, min(*ends, 0.0)), math.hypot(above, max(*ends, 0.0))
    return value, max(value - below, 0.0), min(value + above, 1.0)


def _kept(scores: Mapping[str, float], references: References) -> list[float]:
    """Shares of what the base could do that were measured."""
    base, kept = references.base, []
    if "pres" in scores and "pres" in base:
        kept.append(1 - learnt(scores["pres"], base["pres"], references.ceiling))
    if "class_kid" in scores:  # the base's own is 0
        kept.append(1 - scores["class_kid"] / _FULL_KID)
    if scores.get("prior_loss", 0.0) > 0 and "prior_loss" in base:
        kept.append(base["prior_loss"] / scores["prior_loss"])
    if "div" in scores and base.get("div", 0.0) > 0:
        kept.append(scores["div"] / base["div"])
    return [_share(share) for share in kept]


def has_quality(clip: str) -> bool:
    """Whether quality can be computed from the CLIP-T of this encoder: the span of its scale is known."""
    return clip in _CAPTION_SPANS


def require_quality(clip: str, setting: str) -> None:
    """Raise UserError for an encoder whose scale of CLIP-T is not known; setting: what names it."""
    if not has_quality(clip):
        raise UserError(
            f"{setting}={clip!r}: quality needs a CLIP whose scale is known ({', '.join(sorted(_CAPTION_SPANS))}): use "
            "one of these here; sdxl-ray evaluate scores with any CLIP, without quality"
        )


def _span(clip: str) -> float:
    require_quality(clip, "clip")
    return _CAPTION_SPANS[clip]


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
