"""What the shipped encoders must rank right before anything else may be measured with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from sdxl_ray.evaluation.encoders import Encoder
from sdxl_ray.tiny._build.card.reality import Reality, RealScene
from sdxl_ray.tiny._build.captions import with_article
from sdxl_ray.tiny._build.catalog import CLASSES, COLORS, SUBJECTS
from sdxl_ray.tiny._build.places import PLACES
from sdxl_ray.tiny._build.subjects import HELD_OUT, TRAINING, folder

EncoderScores = dict[str, Any]


def control(clip: Encoder, images: list[Image.Image], scenes: list[RealScene]) -> EncoderScores:
    """Do images show what was asked for? Class, place and colour by zero-shot choice; captions against shuffled ones.

    The class is chosen among all classes by "a photo of a (LOOK) CLASS", the place and the colour among all with the
    rest said.
    """
    seen = clip.images(images)
    right = [_named(clip, vector, scene.look) == scene.class_name for vector, scene in zip(seen, scenes, strict=True)]
    texts = clip.texts([scene.prompt for scene in scenes])
    scores = {
        "n": len(scenes),
        "class_accuracy": float(np.mean(right)),
        "place_accuracy": _choice(clip, seen, scenes, list(PLACES), "place"),
        "caption_right": float((seen * texts).sum(1).mean()),
        "caption_shuffled": float((seen * np.roll(texts, len(texts) // 2, axis=0)).sum(1).mean()),
        "captions_ranked": float(((seen @ texts.T) <= (seen * texts).sum(1)[:, None]).mean()),
    }
    if all(scene.look in COLORS for scene in scenes):
        scores["color_accuracy"] = _choice(clip, seen, scenes, list(COLORS), "look")
    return scores


def _choice(clip: Encoder, seen: Any, scenes: list[RealScene], options: list[str], what: str) -> float:
    """The share of images whose own `what` ("place", "look") fits better than every other option."""
    right = 0
    for vector, scene in zip(seen, scenes, strict=True):
        asked = clip.texts([_with(scene, what, option).prompt for option in options])
        right += options[int((asked @ vector).argmax())] == getattr(scene, what)
    return right / len(scenes)


def _named(clip: Encoder, vector: Any, look: str) -> str:
    texts = [f"a photo of {with_article(f'{look} {name}'.strip())}" for name in CLASSES]
    return CLASSES[int((clip.texts(texts) @ vector).argmax())]


def _with(scene: RealScene, what: str, option: str) -> RealScene:
    return replace(scene, place=option) if what == "place" else replace(scene, look=option)


def identity(encoder: Encoder, reality: Reality, subjects: Sequence[str] = tuple(SUBJECTS)) -> EncoderScores:
    """Mean cosines to a subject's training images, by what is compared; retrieval; decoys."""
    training = {name: encoder.images(views(name, held_out=False)) for name in subjects}
    held_out = {name: encoder.images(views(name, held_out=True)) for name in subjects}
    siblings = {name: encoder.images(reality.siblings(name, 2 * HELD_OUT)) for name in subjects}
    rows: dict[str, EncoderScores] = {}
    for name, own in training.items():
        others = np.concatenate([held_out[other] for other in subjects if other != name])
        decoys = {kind: encoder.images(images) for kind, images in reality.decoys(name, HELD_OUT).items()}
        rows[name] = {
            "same": _near(own, held_out[name]),
            "same_class": _near(own, siblings[name]),
            "other_class": _near(own, others),
            **{f"decoy_{kind}": _near(own, vectors) for kind, vectors in decoys.items()},
        }
    gallery = np.concatenate([*training.values(), *siblings.values()])
    owners = [name for name in subjects for _ in range(TRAINING)] + [""] * (len(subjects) * 2 * HELD_OUT)
    found = [
        owners[int((gallery @ vector).argmax())] == name for name, vectors in held_out.items() for vector in vectors
    ]
    return {
        "subjects": rows,
        "mean": {key: float(np.mean([row[key] for row in rows.values()])) for key in next(iter(rows.values()))},
        "retrieval": float(np.mean(found)),
        "retrieval_n": len(found),
        "ranked": float(np.mean([row["same"] > row["same_class"] > row["other_class"] for row in rows.values()])),
        "decoys_below_siblings": float(
            np.mean([row[key] < row["same_class"] for row in rows.values() for key in row if key.startswith("decoy")])
        ),
    }


def views(name: str, *, held_out: bool) -> list[Image.Image]:
    """A shipped subject's images."""
    home = folder(name) / "held_out" if held_out else folder(name)
    return [Image.open(home / f"{number}.png") for number in range(HELD_OUT if held_out else TRAINING)]


def _near(a: Any, b: Any) -> float:
    return float((a @ b.T).mean())
