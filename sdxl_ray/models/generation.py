"""From an artifact (or the base) and prompts to images: shared by `sdxl-ray generate` and `sdxl_ray.generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.base_lineage import of_embedded_base
from sdxl_ray.config.schema import Base, MaxTokenLength
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.rows import OnRow
from sdxl_ray.models.opening import open_artifact
from sdxl_ray.tiny.unknown_words import unknown_words

if TYPE_CHECKING:
    import torch
    from PIL import Image

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class GenerationRequest:
    """What to draw. seed: of the first image of each prompt; n: images per prompt, seeds counting up.

    width, height: pixels, multiples of 8; None: the base's own size. max_token_length None: the artifact's own.
    """

    prompts: Sequence[str]
    seed: int = 0
    n: int = 1
    steps: int = 30
    guidance: float = 7.5
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    max_token_length: MaxTokenLength | None = None
    batch: int = 4
    precision: str = "auto"

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """(prompt, seed) of every image, in order."""
        return [(prompt, self.seed + count) for prompt in self.prompts for count in range(self.n)]

    def check(self) -> None:
        """Raise UserError for what no model could draw; loads no framework."""
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision {self.precision!r}: choose from {', '.join(PRECISIONS)}")
        if not self.prompts or any(not prompt.strip() for prompt in self.prompts):
            raise UserError("a prompt is empty: say what to draw, in quotes")


@dataclass(frozen=True)
class GenerationSource:
    """The model that draws. artifact None: the base itself."""

    base: Base
    artifact: Artifact | None = None

    @classmethod
    def of(cls, source: str | Path | Artifact, base: Base | None = None) -> GenerationSource:
        """An artifact, its folder, another tool's file, or the word "base".

        base: in place of the one that the artifact's recipe names. Raises UserError as `open_artifact` does.
        """
        if source == "base":
            return cls(base or Base())
        artifact = source if isinstance(source, Artifact) else open_artifact(source, base)
        if base is None:
            base = recipe_files.parse_recorded(artifact.manifest.recipe, f"{artifact.folder}: recipe").base
        return cls(base, artifact)

    @property
    def max_token_length(self) -> MaxTokenLength:
        """Tokens of a prompt that the model was trained with."""
        return self.artifact.manifest.max_token_length if self.artifact else 75

    def notes(self, request: GenerationRequest) -> list[str]:
        """On the embedded base, the words that it was never taught: they are spelled in pieces and hardly steer it."""
        brought = self.artifact.word_files if self.artifact is not None else {}
        texts = [*request.prompts, request.negative or ""]
        for word in brought:
            texts = [text.replace(word, "") for text in texts]
        unknown = unknown_words(texts) if of_embedded_base(self.base.id) else []
        if not unknown:
            return []
        return [
            f"note: the embedded base does not know {', '.join(map(repr, unknown))}; `sdxl-ray doctor` lists what it "
            "draws and where"
        ]


def device_and_dtype(precision: str) -> tuple[Literal["cuda", "cpu"], torch.dtype]:
    """Where and in what to draw. auto: bf16 on a GPU (fp16 on one without it), fp32 on the CPU."""
    import torch

    from sdxl_ray.models.device import DTYPES, has_bf16

    if not torch.cuda.is_available():
        return "cpu", DTYPES.get(precision, torch.float32)
    return "cuda", DTYPES.get(precision, torch.bfloat16 if has_bf16() else torch.float16)


def generate_images(
    source: GenerationSource,
    request: GenerationRequest,
    on_row: OnRow = lambda row: None,
    on_image: Callable[[int, Image.Image, dict[str, Any]], None] = lambda index, image, facts: None,
) -> tuple[list[Image.Image], dict[str, Any]]:
    """Load the model and draw. Returns the images in the order of `request.jobs`, and what they were made with.

    `on_image(index, image, facts)` is called as images are finished; facts: precision and max_token_length as used.
    Raises UserError for a base that does not fit the artifact, RunError for numbers that are not finite.
    """
    from sdxl_ray.models.pipeline import generate, load_pipeline
    from sdxl_ray.models.truncation import prompt_notes

    device, dtype = device_and_dtype(request.precision)
    length = request.max_token_length or source.max_token_length
    facts = {"precision": str(dtype).removeprefix("torch."), "max_token_length": length}
    pipe = load_pipeline(source.base, source.artifact, dtype=dtype, device=device)
    texts = [("the prompt", prompt) for prompt in request.prompts] + [("the negative prompt", request.negative or "")]
    for note in prompt_notes((pipe.tokenizer, pipe.tokenizer_2), texts, length, "--max-token-length "):
        on_row({"kind": "note", "text": f"note: {note}"})
    jobs = request.jobs
    on_row({"kind": "phase", "name": "drawing", "done": 0, "total": len(jobs)})

    def finished(index: int, image: Image.Image) -> None:
        on_image(index, image, facts)
        on_row({"kind": "phase", "name": "drawing", "done": index + 1, "total": len(jobs)})

    images = generate(
        pipe,
        [prompt for prompt, _ in jobs],
        seeds=[seed for _, seed in jobs],
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        negative_prompt=request.negative,
        width=request.width,
        height=request.height,
        batch_size=request.batch,
        max_token_length=length,
        on_image=finished,
    )
    return images, facts
