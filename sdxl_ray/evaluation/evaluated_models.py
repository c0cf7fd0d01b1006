"""What is evaluated: the base or an artifact of it, each with the words that it knows the subject by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sdxl_ray.config.schema import Base, MaxTokenLength
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.models.base_model import load_tokenizers, locate

BASE = "base"
#: Rows of the table that are no models: photos against each other, and another subject of the class.
REAL, OTHER = "real", "other"


@dataclass(frozen=True)
class EvaluatedModel:
    """One row of the comparison. words: the subject in its prompts; None where it only knows the class (the base).

    trained: steps so far, of a model in training that has no artifact yet.
    """

    name: str
    base: Base
    artifact: Artifact | None = None
    words: str | None = None
    trained: int = 0

    @property
    def hash(self) -> str:
        """The artifact's hash; empty for the base."""
        return self.artifact.hash if self.artifact else ""

    @property
    def step(self) -> int:
        """Optimizer steps it was trained for."""
        return self.artifact.manifest.step if self.artifact else self.trained

    @property
    def max_token_length(self) -> MaxTokenLength:
        """Tokens of a caption that it was trained with."""
        return self.artifact.manifest.max_token_length if self.artifact else 75

    def tokenizers(self) -> tuple[Any, Any]:
        """Its tokenizers; a full artifact has its own. Raises UserError when they cannot be read."""
        whole = self.artifact if self.artifact is not None and self.artifact.manifest.kind == "full" else None
        return load_tokenizers(locate(Base(id=str(whole.folder)) if whole is not None else self.base))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything about the model that decides an image, as plain data. An artifact's hash covers its scheduler."""
        known: dict[str, Any] = {"artifact": self.hash, "vae_precision": self.base.vae_precision}
        if self.artifact is None or self.base.vae is not None:
            files = locate(self.base)
            return {**known, "base": files.revision, "vae": files.vae_revision}
        return {**known, "base": self.artifact.manifest.base.revision, "vae": None}


def check_models(models: Sequence[EvaluatedModel]) -> None:
    """Raise UserError unless there is a model, no name stands twice, and all are of one base."""
    if not models:
        raise UserError("nothing to evaluate: name the base or an artifact")
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two models are called {name!r}: write NAME=ARTIFACT for one of them")
        if name in (REAL, OTHER):
            raise UserError(f"a model cannot be called {name!r}, a row of the table is: write NAME=ARTIFACT")
    here = _revision(models)
    for model in models:
        if model.artifact is not None and model.artifact.manifest.base.revision != here:
            made_on = model.artifact.manifest.base
            raise UserError(
                f"artifact {str(model.artifact.folder)!r} was made on base {made_on.id!r} at {made_on.revision[:12]}, "
                f"not on the base at {here[:12]}: evaluate it by itself, or give its base"
            )


def _revision(models: Sequence[EvaluatedModel]) -> str:
    """The one base's revision; a full artifact of a pinned hub id needs no base on this machine."""
    base = next((model.base for model in models if model.artifact is None), models[0].base)
    if base.revision and not Path(base.id).expanduser().exists():
        return base.revision
    return locate(base).revision
