"""Real scenes of known content: what images by the base are measured against, and what its encoders must rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from sdxl_ray.tiny._build.stages import scenery
from sdxl_ray.tiny._build.captions import with_article
from sdxl_ray.tiny._build.catalog import CLASSES, COLORS, DRAWINGS, SUBJECTS, Design
from sdxl_ray.tiny._build.places import PLACES
from sdxl_ray.tiny._build.scenes import DECOYS, Scenery, decoy, held_out_pairs, random_poses

#: Far from the numbers of training scenes.
SEED = 77_000_000


@dataclass(frozen=True)
class RealScene:
    """What a prompt asks for and, where there is one, a real scene of it."""

    class_name: str
    place: str
    look: str = ""  # a colour or a pattern
    image: Image.Image | None = None

    @property
    def prompt(self) -> str:
        return f"a photo of {with_article(f'{self.look} {self.class_name}'.strip())} {PLACES[self.place].phrases[0]}"


class Reality:
    """Draws real scenes (needs the image sets, unless it is given a scenery)."""

    def __init__(self, drawn: Scenery | None = None) -> None:
        self._scenery = drawn or scenery()

    def scenes(self, kind: str, count: int) -> list[RealScene]:
        """`kind`: "seen" or "unseen" (class, place) pairs, or "colored": recoloured drawings on seen pairs."""
        rng = np.random.default_rng([SEED, len(kind)])
        unseen = held_out_pairs()
        every = [(name, place) for name in CLASSES for place in PLACES]
        pairs = [pair for pair in every if (pair in unseen) == (kind == "unseen")]
        made = []
        for index in rng.permutation(len(pairs) * (1 + count // len(pairs)))[:count] % len(pairs):
            name, place = pairs[index]
            design = self._scenery.random_design(rng, name, plain=True)
            color = str(rng.choice(list(COLORS))) if kind == "colored" else ""
            shown = self.image(Design(name, design.set_name, color), place, rng)
            made.append(RealScene(name, place, color, shown))
        return made

    def image(self, design: Design, place: str, rng: np.random.Generator, decoyed: str = "") -> Image.Image:
        """One scene; `decoyed` names the decoy that stands there instead."""
        figure = self._scenery.draw(design)
        if decoyed:
            figure = decoy(figure, decoyed, rng)
        return self._scenery.place([figure], random_poses(1, rng), place, rng)[0]

    def decoys(self, subject: str, each: int) -> dict[str, list[Image.Image]]:
        """Images of the subject's colours and texture without its shape, by kind."""
        rng = np.random.default_rng([SEED, 1, list(SUBJECTS).index(subject)])
        places = rng.choice(list(PLACES), each)
        return {kind: [self.image(SUBJECTS[subject], str(place), rng, kind) for place in places] for kind in DECOYS}

    def siblings(self, subject: str, each: int) -> list[Image.Image]:
        """Other drawings of the subject's class, as drawn."""
        rng = np.random.default_rng([SEED, 2, list(SUBJECTS).index(subject)])
        design = SUBJECTS[subject]
        others = [name for name in DRAWINGS[design.class_name] if name != design.set_name]
        return [
            self.image(Design(design.class_name, str(rng.choice(others))), str(rng.choice(list(PLACES))), rng)
            for _ in range(each)
        ]
