"""From images to rows of the table `scores`: every metric of every model, the reference rows, paired differences."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

from sdxl_ray.evaluation import scores as metrics
from sdxl_ray.evaluation.encoders import Encoder
from sdxl_ray.evaluation.evaluated_models import OTHER, REAL, EvaluatedModel
from sdxl_ray.evaluation.scores import METRICS
from sdxl_ray.evaluation.subject import Photo, Subject
from sdxl_ray.metrics.bootstrap import FloatArray, Terms, interval

Images = Sequence[Image.Image]


def split_at(split: str, steps: int) -> str:
    """What records call a split that was drawn with another number of denoising steps: `final@8`."""
    return f"{split}@{steps}"


class SubjectEncoder:
    """The encoders, and what they say of the photos and the prompts."""

    def __init__(
        self, identity: Encoder, clip: Encoder, subject: Subject, texts: Sequence[str], class_texts: Sequence[str]
    ) -> None:
        self.identity, self.clip = identity, clip
        self.photos = {encoder.name: _rows(encoder, subject.photos) for encoder in (identity, clip)}
        self.others = {encoder.name: _rows(encoder, subject.other) for encoder in (identity, clip)}
        self.texts_PD = clip.texts(texts)
        self.class_texts_PD = clip.texts(list(dict.fromkeys(class_texts)))


@dataclass
class ScoreTable:
    """Collects rows. terms: (split, model, metric) -> what a score is the mean of, so that differences are paired.

    missing: metric -> why no model has a score of it.
    """

    subject: Subject
    split: str
    resamples: int
    encoders: SubjectEncoder
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    terms: dict[tuple[str, str, str], Terms] = field(default_factory=dict)
    _models: list[str] = field(default_factory=list)

    def add(
        self,
        model: EvaluatedModel,
        images: Sequence[Images],
        classes: Images,
        base_classes: Images,
        losses: FloatArray | None,
        seconds: float = 0.0,
    ) -> None:
        """Score one model. images: of the subject, by [prompt][seed]; base_classes: none without the base.

        seconds: what it took to draw them.
        """
        began = time.monotonic()
        identity, clip = self.encoders.identity, self.encoders.clip
        seen = [identity.encode(some) for some in images]
        images_PSD = np.stack([rows for rows, _ in seen])
        clip_PSD = np.stack([clip.images(some) for some in images])
        photos = self.encoders.photos
        clip_classes_ND = clip.images(classes)
        found = {
            "dino_i": (metrics.fidelity(images_PSD, photos[identity.name]), identity),
            "clip_i": (metrics.fidelity(clip_PSD, photos[clip.name]), clip),
            "clip_t": (metrics.alignment(clip_PSD, self.encoders.texts_PD), clip),
            "pres": (metrics.leak(identity.images(classes), photos[identity.name]), identity),
            "class_kid": (
                metrics.class_distance(clip_classes_ND, clip.images(base_classes)) if base_classes else None,
                clip,
            ),
            "prior_loss": (metrics.denoising(losses) if losses is not None else None, None),
            "div": (metrics.diversity(np.stack([patches for _, patches in seen])), identity),
        }
        assert set(found) == set(METRICS)
        self._models.append(model.name)
        seconds += time.monotonic() - began
        for name, (terms, encoder) in found.items():
            self._row(model.name, name, terms, encoder, step=model.step, artifact=model.hash, seconds=seconds)
        self._explain(len(photos[identity.name]), bool(base_classes), len(images[0]))

    def add_steps(self, model: EvaluatedModel, steps: int, images: Sequence[Images]) -> None:
        """Score the subject as drawn with another number of denoising steps; rows of a split of their own."""
        identity, clip = self.encoders.identity, self.encoders.clip
        clip_PSD = np.stack([clip.images(some) for some in images])
        identity_PSD = np.stack([identity.images(some) for some in images])
        found = {
            "dino_i": (metrics.fidelity(identity_PSD, self.encoders.photos[identity.name]), identity),
            "clip_i": (metrics.fidelity(clip_PSD, self.encoders.photos[clip.name]), clip),
            "clip_t": (metrics.alignment(clip_PSD, self.encoders.texts_PD), clip),
        }
        split = split_at(self.split, steps)
        for name, (terms, encoder) in found.items():
            self._row(model.name, name, terms, encoder, step=model.step, artifact=model.hash, split=split)

    def add_references(self) -> None:
        """The ceiling (photos against each other, and against their class's words), and the floor.

        The floor is another subject of the class, where given.
        """
        for metric, encoder in (("dino_i", self.encoders.identity), ("clip_i", self.encoders.clip)):
            photos_RD, others_ND = self.encoders.photos[encoder.name], self.encoders.others[encoder.name]
            self._row(REAL, metric, metrics.among(photos_RD), encoder)
            if self.subject.other:
                self._row(OTHER, metric, metrics.between(others_ND, photos_RD), encoder)
        clip = self.encoders.clip
        self._row(REAL, "clip_t", metrics.named(self.encoders.photos[clip.name], self.encoders.class_texts_PD), clip)

    def add_gains(self, base: str) -> None:
        """For every score of a tuned model, `<metric>_gain`: minus the base's, paired by prompt, seed and photo."""
        tuned = [name for name in self._models if name != base]
        for row in [row for row in self.rows if row["model"] in tuned and row["split"] == self.split]:
            terms = self._difference(row["model"], base, row["metric"])
            if terms is not None:
                self.rows.append({**row, "metric": f"{row['metric']}_gain", **self._interval(terms)})

    def differences(self) -> list[dict[str, Any]]:
        """Every model minus every one before it, under the same prompts, seeds and photos."""
        pairs = [(second, first, name) for first, second in combinations(self._models, 2) for name in METRICS]
        known = {"step": 0, "subject": self.subject.name, "split": self.split}
        return [
            {**known, "model": second, "against": first, "metric": name, **self._interval(terms)}
            for second, first, name in pairs
            if (terms := self._difference(second, first, name)) is not None
        ]

    def _difference(self, model: str, against: str, metric: str) -> Terms | None:
        one, two = (self.terms.get((self.split, name, metric)) for name in (model, against))
        return None if one is None or two is None else one - two

    def _row(self, model: str, metric: str, terms: Terms | None, encoder: Encoder | None, **more: Any) -> None:
        row: dict[str, Any] = {
            "step": 0,
            "model": model,
            "subject": self.subject.name,
            "metric": metric,
            "split": self.split,
        }
        row |= self._interval(terms) if terms is not None else {"value": None, "low": None, "high": None, "n": 0}
        row |= {"encoder": encoder and encoder.name, "preprocessing": encoder and encoder.preprocessing}
        row |= {"artifact": "", "seconds": None, **more}
        self.rows.append(row)
        if terms is not None:
            self.terms[row["split"], model, metric] = terms

    def _interval(self, terms: Terms) -> dict[str, Any]:
        found = interval(terms, resamples=self.resamples)
        return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}

    def _explain(self, photos: int, has_base: bool, seeds: int) -> None:
        if photos < metrics.LEAST_PHOTOS:
            known = f"{photos} held-out photo{'s' if photos != 1 else ''}, at least {metrics.LEAST_PHOTOS} are needed"
            self.missing |= dict.fromkeys(("dino_i", "clip_i", "pres"), known)
        if not has_base:
            self.missing |= dict.fromkeys(("class_kid", "prior_loss"), "the base, to compare with, is not evaluated")
        if seeds < 2:
            self.missing["div"] = "it needs at least 2 seeds"


def _rows(encoder: Encoder, photos: Sequence[Photo]) -> Any:
    return encoder.images([photo.image for photo in photos]) if photos else np.empty((0, 1), np.float32)
