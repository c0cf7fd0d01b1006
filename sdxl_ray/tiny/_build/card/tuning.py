"""What tuning does on the embedded base: subjects it never saw, three ways of tuning, everything else equal."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from sdxl_ray.evaluation.encoders import Encoder
from sdxl_ray.tiny._build.card.encoders import EncoderScores, control, views
from sdxl_ray.tiny._build.card.images import Drawer
from sdxl_ray.tiny._build.card.reality import RealScene
from sdxl_ray.errors import RunError
from sdxl_ray.io.records import read
from sdxl_ray.tiny._build.captions import with_article
from sdxl_ray.tiny._build.catalog import CLASSES, SUBJECTS
from sdxl_ray.tiny._build.places import PLACES

TuningImages = dict[str, list[Image.Image]]

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
    """Seconds that a run's steps took together, without the start and the class images."""
    return float(sum(read(run / "records", "steps")["seconds"].to_pylist()))


def draw(subject: str, arm: str, storage: Path, base: Drawer) -> TuningImages:
    """What the base (arm "base") or a tuned model draws for a subject, kept in `storage` beside the runs.

    "own": the subject by its identifier; "plain": its class; "others": the other classes.
    """
    kept = storage / f"{subject}-{arm}.npz"
    if not kept.is_file():
        drawer = base if arm == "base" else Drawer(tune(subject, arm, storage) / "artifact")
        class_name = SUBJECTS[subject].class_name
        asked = {
            "own": [f"a photo of sks {class_name} {PLACES[scene.place].phrases[0]}" for scene in _own(subject)],
            "plain": [f"a photo of {with_article(class_name)}"] * _PLAIN,
            "others": [scene.prompt for scene in _others(subject)],
        }
        storage.mkdir(parents=True, exist_ok=True)
        made = {kind: np.stack([np.asarray(it) for it in drawer.draw(prompts)]) for kind, prompts in asked.items()}
        np.savez_compressed(kept, allow_pickle=False, **made)
    with np.load(kept) as stored:
        return {kind: [Image.fromarray(pixels) for pixels in stored[kind]] for kind in stored}


def train_all(storage: Path) -> None:
    """Tune and draw every subject under every arm, in one process of one thread for each core."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # Arm after arm, so that two processes do not want the class images of one class at once.
    pairs = [(subject, arm) for arm in ("base", *ARMS) for subject in SUBJECTS_TUNED]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        running = {pool.submit(_drawn, subject, arm, storage): (subject, arm) for subject, arm in pairs}
        for number, done in enumerate(as_completed(running), start=1):
            done.result()
            sys.stderr.write(f"{number} of {len(pairs)}: {', '.join(running[done])}\n")


def _drawn(subject: str, arm: str, storage: Path) -> None:
    draw(subject, arm, storage, Drawer())


def judge(subject: str, images: TuningImages, identity: Encoder, clip: Encoder) -> EncoderScores:
    """Subject and prompt fidelity, leak and forgetting of one model, from what it drew.

    Prompts name the class; what was drawn is held against captions that name the look too, as captions of the base do.
    """
    real = identity.images(views(subject, held_out=True))
    rest = control(clip, images["others"], _others(subject))
    obeyed = control(clip, images["own"], _own(subject))
    return {
        "subject_fidelity": float((identity.images(images["own"]) @ real.T).mean()),
        "prompt_score": obeyed["caption_right"],
        "place_accuracy": obeyed["place_accuracy"],
        "class_accuracy": obeyed["class_accuracy"],
        "leak": float((identity.images(images["plain"]) @ real.T).mean()),
        "other_classes_accuracy": rest["class_accuracy"],
    }


def _own(subject: str) -> list[RealScene]:
    design = SUBJECTS[subject]
    look = design.pattern or design.color
    return [RealScene(design.class_name, place, look) for place in _PLACES for _ in range(_EACH)]


def _others(subject: str) -> list[RealScene]:
    own = SUBJECTS[subject].class_name
    return [RealScene(name, place) for name in CLASSES if name != own for place in _OTHER_PLACES]


def reference(subject: str, identity: Encoder, drawer: Drawer, siblings: list[Image.Image]) -> EncoderScores:
    """What fidelity may be held against, each as the mean identity cosine to the held-out images.

    "real": these among each other, the ceiling; "autoencoder": the same after the base's autoencoder, which no tuning
    changes; "another": other drawings of the class.
    """
    images = views(subject, held_out=True)
    real, coded = identity.images(images), identity.images(drawer.recoded(images))
    others = ~np.eye(len(real), dtype=bool)
    return {
        "real": float((real @ real.T)[others].mean()),
        "autoencoder": float((coded @ real.T)[others].mean()),
        "another": float((identity.images(siblings) @ real.T).mean()),
    }
