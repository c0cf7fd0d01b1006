"""Drawing what is scored: batched, spread over ranks, kept on disk by what decides the image, and never drawn twice.

An image's file is named by a hash of (model, prompt, seed, settings), so an interrupted evaluation resumes where it
was, and one that asks for more seeds draws only those.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from sdxl_ray.config.schema import MaxTokenLength
from sdxl_ray.data.png import save_png
from sdxl_ray.errors import RunError
from sdxl_ray.evaluation.evaluated_models import EvaluatedModel
from sdxl_ray.io.collectives import Collectives, share
from sdxl_ray.io.rows import OnProgress
from sdxl_ray.models.pipeline import generate

#: Raised by hand when the code that draws gives other images; old files are then not found.
CODE_VERSION = 1


@dataclass(frozen=True)
class GenerationSettings:
    """Settings that every model draws with. height, width: pixels; None: the base's own size.

    max_token_length: tokens of a prompt that are used; None: the most that any of the models was trained with.
    """

    num_inference_steps: int
    guidance_scale: float
    height: int | None = None
    width: int | None = None
    precision: str = "fp32"
    batch_size: int = 8
    max_token_length: MaxTokenLength | None = None


@dataclass(frozen=True)
class ImageJob:
    """One image to draw: the prompt as the model gets it, and the seed."""

    model: EvaluatedModel
    prompt: str
    seed: int
    drawing: GenerationSettings

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that decides the image (to within one 8-bit level; the batch is left out)."""
        drawing = {name: value for name, value in asdict(self.drawing).items() if name != "batch_size"}
        if drawing["max_token_length"] in (None, 75):  # the key of before there was a choice
            del drawing["max_token_length"]
        plain = [CODE_VERSION, self.model.identity, self.prompt, self.seed, drawing]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


class ImageStore:
    """PNG files by key in a folder that any number of processes may write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._notes = folder / f"drawn-{uuid.uuid4().hex}.jsonl"

    def path(self, job: ImageJob) -> Path:
        """Where the image of a job is, or will be."""
        return self.folder / job.key[:2] / f"{job.key}.png"

    def has(self, job: ImageJob) -> bool:
        """Whether the image is there and whole; a damaged file counts as missing."""
        try:
            with Image.open(self.path(job)) as image:
                image.verify()
        except (OSError, SyntaxError, ValueError):
            return False
        return True

    def grid(self, jobs: Sequence[Sequence[ImageJob]]) -> list[list[Image.Image]]:
        """The images of rows of jobs."""
        return [[self.read(job) for job in row] for row in jobs]

    def read(self, job: ImageJob) -> Image.Image:
        """The image, RGB. Raises RunError when it is not there."""
        try:
            with Image.open(self.path(job)) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise RunError(f"image {str(self.path(job))!r} cannot be read ({error}): evaluate again") from None

    def write(self, job: ImageJob, image: Image.Image) -> None:
        """Keep an image, with what made it in its text chunks."""
        facts = {"prompt": job.prompt, "seed": job.seed, "artifact": job.model.hash, **asdict(job.drawing)}
        save_png(image, self.path(job), facts)

    def note(self, batch: Sequence[ImageJob], began: float, seconds: float) -> None:
        """Keep when (seconds of the epoch) a batch began and how long it took. A line of this store's own file."""
        line = json.dumps({"keys": [job.key for job in batch], "began": began, "seconds": seconds})
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def seconds(self) -> dict[str, float]:
        """Key -> seconds of the image, its share of its batch, of all that were noted. A cut line is left out."""
        found: dict[str, float] = {}
        for file in sorted(self.folder.glob("drawn-*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    note = json.loads(line)
                    found |= dict.fromkeys(note["keys"], note["seconds"] / len(note["keys"]))
        return found


def draw(
    pipe: Callable[[], Any], jobs: Sequence[ImageJob], store: ImageStore, group: Collectives, progress: OnProgress
) -> None:
    """Draw those jobs of one model that the store lacks, each rank its share; `pipe` is only called when there are any.

    Batches have a fixed make-up whatever is missing and however many ranks there are: an image's last bit depends on
    those drawn beside it. Ranks need not wait for each other. Raises RunError as `generate` does.
    """
    if not jobs:
        return
    jobs = list({job.key: job for job in jobs}.values())  # the base's class images may be its subject's too
    size = jobs[0].drawing.batch_size
    batches = share([list(jobs[start : start + size]) for start in range(0, len(jobs), size)], group)
    missing = [batch for batch in batches if not all(store.has(job) for job in batch)]
    total = sum(map(len, batches))
    done = total - sum(map(len, missing))
    for batch in missing:
        progress(done, total)
        ready = pipe()
        at, began = time.time(), time.monotonic()
        images = _images(ready, batch)
        store.note(batch, at, time.monotonic() - began)
        for job, image in zip(batch, images, strict=True):
            if not store.has(job):  # drawn before, in another batch: the one that was scored stays
                store.write(job, image)
        done += len(batch)
    progress(total, total)


def _images(pipe: Any, batch: Sequence[ImageJob]) -> list[Image.Image]:
    drawing = batch[0].drawing
    return generate(
        pipe,
        [job.prompt for job in batch],
        seeds=[job.seed for job in batch],
        num_inference_steps=drawing.num_inference_steps,
        guidance_scale=drawing.guidance_scale,
        height=drawing.height,
        width=drawing.width,
        batch_size=len(batch),
        max_token_length=drawing.max_token_length or 75,
    )
