"""Measures the embedded base and writes `scores.json`, `CARD.md` and its pictures.

    python -m sdxl_ray.core.tinycard --work /tmp/card              # all of it, about 25 min on two cores
    python -m sdxl_ray.core.tinycard --work /tmp/card --only base  # encoders and base, without tuning

Every part is kept in the work folder as it is done, and not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from sdxl_ray.core.grid import grid
from sdxl_ray.core.quality.encoders import load_encoder
from sdxl_ray.core.tinycard import page
from sdxl_ray.core.tinycard.encoders import control, identity, views
from sdxl_ray.core.tinycard.pictures import Drawer
from sdxl_ray.core.tinycard.reality import Reality, Scene
from sdxl_ray.core.tinycard.tuning import ARMS, SUBJECTS_TUNED, judge, reference, tune
from sdxl_ray.tiny import shipped
from sdxl_ray.tiny.builder.finish import MADE

_COUNTS = {"seen": 240, "unseen": 192, "colored": 132}


def main() -> None:
    parser = argparse.ArgumentParser("python -m sdxl_ray.core.tinycard", description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="where parts, runs and grids are kept")
    parser.add_argument("--only", choices=("base",), help="leave out the tuning of subjects")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
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
        file = work / f"{name}-{shipped.index_revision()[:12]}.json"
        if not file.is_file():
            sys.stderr.write(f"measuring {name}\n")
            file.write_text(json.dumps(make()))
        scores[name] = json.loads(file.read_text())

    def drawn(kind: str) -> dict[str, Any]:
        scenes = reality.scenes(kind, _COUNTS[kind])
        real = [scene.picture for scene in scenes if scene.picture is not None]
        made = base.draw([scene.prompt for scene in scenes])
        sheet(scenes[:48], made[:48]).save(work / f"{kind}.png")
        return {"real": control(clip, real, scenes), "base": control(clip, made, scenes)}

    part("identity", lambda: identity(eye, reality))
    for kind in _COUNTS:
        part(kind, partial(drawn, kind))
    part("speed", lambda: {"batch_1": base.rate(1, 8), "batch_8": base.rate(8, 32)})
    if tuning:
        for subject in SUBJECTS_TUNED:
            part(f"subject_{subject}", partial(tuned, subject, work, base, eye, clip))
    return scores


def tuned(subject: str, work: Path, base: Drawer, eye: Any, clip: Any) -> dict[str, Any]:
    """One subject under every arm, beside the base and the ceiling; its grid of pictures goes to `work`."""
    rows: dict[str, Any] = {"base": judge(subject, base, eye, clip)}
    for arm in ARMS:
        made = tune(subject, arm, work / "runs")
        rows[arm] = {**judge(subject, Drawer(Path(made["artifact"])), eye, clip), **made}
        del rows[arm]["artifact"]
    shown = {"real": views(subject, held_out=True), **{arm: row.pop("pictures")[::2] for arm, row in rows.items()}}
    grid([pictures[:8] for pictures in shown.values()], list(shown), [""] * 8).save(work / f"subject-{subject}.png")
    return {"ceiling": reference(subject, eye), "models": rows}


def sheet(scenes: list[Scene], pictures: list[Image.Image]) -> Image.Image:
    """Pictures with their prompts, 8 in a row."""
    starts = range(0, len(pictures), 8)
    labels = [" / ".join(f"{scene.look} {scene.class_name}" for scene in scenes[at : at + 8]) for at in starts]
    return grid([pictures[at : at + 8] for at in starts], labels, [""] * 8)


if __name__ == "__main__":
    main()
