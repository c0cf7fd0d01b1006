"""What tuning does on the embedded base: subjects it never saw, three ways of tuning, everything else equal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sdxl_ray.core.quality.encoders import Encoder
from sdxl_ray.core.tinycard.encoders import Scores, control, views
from sdxl_ray.core.tinycard.pictures import Drawer
from sdxl_ray.core.tinycard.reality import Scene
from sdxl_ray.errors import RunError
from sdxl_ray.records import read
from sdxl_ray.tiny.captions import with_article
from sdxl_ray.tiny.catalog import CLASSES, SUBJECTS
from sdxl_ray.tiny.places import PLACES

#: arm -> (recipe, changes)
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lora": ("tiny_lora", ()),
    "dreambooth": ("tiny_dreambooth", ()),
    "dreambooth_no_prior": ("tiny_dreambooth", ("data.prior=null",)),
}
SUBJECTS_TUNED = ("robot", "frog", "turtle", "car", "mushroom", "teapot")
_PLACES = ("beach", "snow", "forest", "kitchen", "space", "city", "volcano", "brick wall")
_EACH = 2
_PLAIN = 12
_OTHER_PLACES = ("grass", "studio")


def tune(subject: str, arm: str, storage: Path) -> Path:
    """Train one arm with the ordinary command, unless `storage` holds it already: its run folder.

    Raises RunError with the command's last words when it fails.
    """
    recipe, changes = ARMS[arm]
    settings = [
        f"data.images=subject:{subject}",
        f"data.subject=sks {SUBJECTS[subject].class_name}",
        f"data.class_name={SUBJECTS[subject].class_name}",
        "parallel.engine=local",
        "parallel.workers=1",
        "evaluation.every=0",
        *changes,
    ]
    name = f"{subject}-{arm}"
    if not (storage / name / "artifact").is_dir():
        command = [sys.executable, "-m", "sdxl_ray", "train", recipe, *settings]
        begun = [*command, "--storage", str(storage), "--name", name]
        done = subprocess.run(begun, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"training {name} failed: {done.stderr.strip()[-500:]}")
    return storage / name


def training_seconds(run: Path) -> float:
    """Seconds that a run's steps took together, without the start and the class pictures."""
    return float(sum(read(run / "records", "steps")["seconds"].to_pylist()))


def judge(subject: str, drawer: Drawer, identity: Encoder, clip: Encoder) -> Scores:
    """Subject and prompt fidelity, leak and forgetting of one model.

    Prompts name the class; what was drawn is held against captions that name the look too, as captions of the base do.
    """
    design = SUBJECTS[subject]
    class_name, look = design.class_name, design.pattern or design.color
    real = identity.pictures(views(subject, held_out=True))
    scenes = [Scene(class_name, place, look) for place in _PLACES for _ in range(_EACH)]
    own = drawer.draw([f"a photo of sks {class_name} {PLACES[scene.place].phrases[0]}" for scene in scenes])
    plain = drawer.draw([f"a photo of {with_article(class_name)}"] * _PLAIN)
    others = [Scene(name, place) for name in CLASSES if name != class_name for place in _OTHER_PLACES]
    rest = control(clip, drawer.draw([scene.prompt for scene in others]), others)
    obeyed = control(clip, own, scenes)
    return {
        "subject_fidelity": float((identity.pictures(own) @ real.T).mean()),
        "prompt_score": obeyed["caption_right"],
        "place_accuracy": obeyed["place_accuracy"],
        "class_accuracy": obeyed["class_accuracy"],
        "leak": float((identity.pictures(plain) @ real.T).mean()),
        "other_classes_accuracy": rest["class_accuracy"],
        "pictures": own,
    }


def reference(subject: str, identity: Encoder, drawer: Drawer, siblings: list[Image.Image]) -> Scores:
    """What fidelity may be held against, each as the mean identity cosine to the held-out pictures.

    "real": these among each other, the ceiling; "autoencoder": the same after the base's autoencoder, which no tuning
    changes; "another": other drawings of the class.
    """
    pictures = views(subject, held_out=True)
    real, coded = identity.pictures(pictures), identity.pictures(drawer.recoded(pictures))
    others = ~np.eye(len(real), dtype=bool)
    return {
        "real": float((real @ real.T)[others].mean()),
        "autoencoder": float((coded @ real.T)[others].mean()),
        "another": float((identity.pictures(siblings) @ real.T).mean()),
    }
