"""The subjects shipped with the package: designs that the embedded base has never seen, each in ten places.

    python -m sdxl_ray.tiny._build.subjects          # draws every image again, pixel for pixel (fetches the image sets)

Five images are there to train on and five, in `held_out/`, to judge with; no two of the ten share a place.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sdxl_ray.errors import UserError, nearest
from sdxl_ray.tiny._build.captions import describe, with_article
from sdxl_ray.tiny._build.catalog import SETS, SUBJECTS, Design
from sdxl_ray.tiny._build.layout import SEED

TRAINING, HELD_OUT = 5, 5
_FOLDER = Path(__file__).parents[1] / "subjects"
_MATERIALS = {"striped": "stripes", "dotted": "dots", "checkered": "squares"}


def folder(name: str) -> Path:
    """The folder of a shipped subject: images 0.png to 4.png, `held_out/` and `card.json`.

    Raises UserError when there is no such subject, naming the nearest.
    """
    if name not in SUBJECTS:
        raise UserError(f"no subject {name!r} is shipped: {nearest(name, SUBJECTS)}")
    return _FOLDER / name


def card(name: str) -> dict[str, str]:
    """What a person or a recipe needs to know about a subject."""
    design = SUBJECTS[name]
    origin = SETS[design.set_name]
    return {
        "name": name,
        "class_name": design.class_name,
        "subject": f"sks {design.class_name}",
        "prompt": f"a photo of sks {design.class_name}",
        "description": _description(design),
        "origin": f"{origin.package} {origin.version} by {origin.author}, recoloured and placed in scenes",
        "licence": origin.licence,
    }


def write(target: Path) -> None:
    """Draw every subject below `target`."""
    from sdxl_ray.cache_folder import cache_root
    from sdxl_ray.tiny._build.designs import Designs
    from sdxl_ray.tiny._build.places import PLACES
    from sdxl_ray.tiny._build.scenes import Scenery, random_poses
    from sdxl_ray.tiny._build.sprites import Sprites

    scenery = Scenery(Designs(Sprites(cache_root() / "picture-sets")), SEED, variants=12)
    for index, (name, design) in enumerate(SUBJECTS.items()):
        rng = np.random.default_rng([SEED, 10, index])
        (target / name / "held_out").mkdir(parents=True, exist_ok=True)
        for number, place in enumerate(rng.choice(list(PLACES), TRAINING + HELD_OUT, replace=False)):
            image, _ = scenery.place([scenery.draw(design)], random_poses(1, rng), str(place), rng)
            part = f"{number}.png" if number < TRAINING else f"held_out/{number - TRAINING}.png"
            image.save(target / name / part, optimize=True)
        (target / name / "card.json").write_text(json.dumps(card(name), indent=2) + "\n")


def _description(design: Design) -> str:
    words = with_article(describe(Design(design.class_name, design.set_name, design.color)))
    if design.pattern:
        words += f" with {design.second} {_MATERIALS[design.pattern]}"
    if design.accessory:
        words += f" wearing {with_article(design.accessory)}"
    return words[0].upper() + words[1:]


if __name__ == "__main__":
    write(_FOLDER)
