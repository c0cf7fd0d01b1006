"""Measures the embedded base and writes `scores.json`, `CARD.md` and its images.

    python -m sdxl_ray.tiny._build.card --work /tmp/card               # all of it, about 40 min on two cores
    python -m sdxl_ray.tiny._build.card --work /tmp/card --only base   # encoders and base, without tuning
    python -m sdxl_ray.tiny._build.card --work /tmp/card --only train  # tunes and draws on every core; the first judges
    python -m sdxl_ray.tiny._build.card --work /tmp/card --only speed  # speed again, on an idle machine, 6 min

Every part is kept in the work folder as it is done, and not measured again while what it depends on is the same. Runs
belong to the base, what was measured of them also to the encoders: other encoders judge the same runs anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from sdxl_ray.data.image_grid import grid
from sdxl_ray.evaluation.encoders import load_encoder
from sdxl_ray.tiny._build.card import page
from sdxl_ray.tiny._build.card.encoders import control, identity, views
from sdxl_ray.tiny._build.card.images import Drawer
from sdxl_ray.tiny._build.card.reality import Reality, RealScene
from sdxl_ray.tiny._build.card.tuning import ARMS, SUBJECTS_TUNED, draw, judge, reference, train_all, training_seconds, tune
from sdxl_ray.tiny import shipped
from sdxl_ray.tiny._build.finish import MADE

_COUNTS = {"seen": 240, "unseen": 192, "colored": 132}
#: part -> what of the shipped tree it depends on; others on all
_DEPENDS = {
    "identity": ("scorers/identity",),
    **dict.fromkeys(_COUNTS, ("base", "scorers/clip")),
    "speed": ("base",),
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m sdxl_ray.tiny._build.card", description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="where parts, runs and grids are kept")
    parser.add_argument("--only", choices=("base", "train", "speed"), help="one part of it; see above")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.only == "train":
        train_all(_runs(given.work))
        return
    if given.only == "speed":
        scores = json.loads((shipped.ROOT / "scores.json").read_text())
        scores["speed"] = speed(Drawer())
        _kept(given.work, "speed").write_text(json.dumps(scores["speed"]))
    else:
        scores = measure(given.work, tuning=given.only is None)
    (shipped.ROOT / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    (shipped.ROOT / "CARD.md").write_text(page.card(scores))


def measure(work: Path, *, tuning: bool = True) -> dict[str, Any]:
    """Every part of the card, from `work` where it is there already for these very weights."""
    reality, base = Reality(), Drawer()
    eye, clip = load_encoder("tiny-identity"), load_encoder("tiny-clip")
    made = json.loads((shipped.ROOT / MADE).read_text())
    scores: dict[str, Any] = {"revision": shipped.index_revision(), "date": date.today().isoformat(), "made": made}

    def part(name: str, make: Callable[[], Any]) -> None:
        file = _kept(work, name)
        if not file.is_file():
            sys.stderr.write(f"measuring {name}\n")
            file.write_text(json.dumps(make()))
        scores[name] = json.loads(file.read_text())

    def drawn(kind: str) -> dict[str, Any]:
        scenes = reality.scenes(kind, _COUNTS[kind])
        real = [scene.image for scene in scenes if scene.image is not None]
        made = base.draw([scene.prompt for scene in scenes])
        sheet(scenes[:48], made[:48]).save(work / f"{kind}.png")
        return {"real": control(clip, real, scenes), "base": control(clip, made, scenes)}

    def tuned(subject: str) -> dict[str, Any]:
        images = {arm: draw(subject, arm, _runs(work), base) for arm in ("base", *ARMS)}
        shown = {"real": views(subject, held_out=True), **{arm: drawn["own"][::2] for arm, drawn in images.items()}}
        grid([row[:8] for row in shown.values()], list(shown), [""] * 8).save(work / f"subject-{subject}.png")
        return {
            "reference": reference(subject, eye, base, reality.siblings(subject, 10)),
            "models": {arm: judge(subject, drawn, eye, clip) for arm, drawn in images.items()},
        }

    part("identity", lambda: identity(eye, reality))
    for kind in _COUNTS:
        part(kind, partial(drawn, kind))
    part("speed", lambda: speed(base))
    if tuning:
        for subject in SUBJECTS_TUNED:
            part(f"subject_{subject}", partial(tuned, subject))
    return scores


def speed(base: Drawer) -> dict[str, float]:
    """Images a second, and the seconds that training one subject takes under each arm."""
    rates = {"batch_1": base.rate(1, 8), "batch_8": base.rate(8, 32)}
    with TemporaryDirectory() as storage:
        return rates | {arm: training_seconds(tune(SUBJECTS_TUNED[0], arm, Path(storage))) for arm in ARMS}


def _runs(work: Path) -> Path:
    return work / f"runs-{shipped.revision()[:12]}"


def _kept(work: Path, name: str) -> Path:
    """Where a part is kept: by what it depends on, so that another scorer has only its own parts measured again."""
    digest = hashlib.sha256()
    for file, found in shipped.files().items():
        if file.startswith(_DEPENDS.get(name, shipped.LISTED)):
            digest.update(f"{file} {found}\n".encode())
    return work / f"{name}-{digest.hexdigest()[:12]}.json"


def sheet(scenes: list[RealScene], images: list[Image.Image]) -> Image.Image:
    """Images with their prompts, 8 in a row."""
    starts = range(0, len(images), 8)
    labels = [" / ".join(f"{scene.look} {scene.class_name}" for scene in scenes[at : at + 8]) for at in starts]
    return grid([images[at : at + 8] for at in starts], labels, [""] * 8)


if __name__ == "__main__":
    main()
