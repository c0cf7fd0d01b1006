"""What trains and what is written, counted from a profile: trained scalars, adapter layers, files."""

from __future__ import annotations

from dataclasses import dataclass

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import LoraTuning
from sdxl_ray.errors import UserError, nearest
from sdxl_ray.plan.profile import ModelProfile, TuningMode, rank_of

ENCODERS = {1: "text_encoder", 2: "text_encoder_2"}

#: Bytes of a safetensors header for each tensor: name, dtype, shape and offsets as JSON, and the adapters' metadata.
_HEADER_PER_TENSOR = 180


@dataclass(frozen=True)
class PartSize:
    """One part that an engine holds.

    trained, frozen: scalars. tensors: trained tensors. mode and rank: which record of the profile describes its
    activations; rank is the mean over its adapters. approximate: the record is of more layers than these targets adapt.
    """

    part: str
    trained: int
    frozen: int
    tensors: int
    mode: TuningMode
    rank: float
    approximate: bool = False


@dataclass(frozen=True)
class Sizes:
    """What trains, and the parts it is in. whole: scalars of the pipeline without adapters."""

    parts: tuple[PartSize, ...]
    whole: int
    kind: str

    @property
    def trained(self) -> int:
        return sum(part.trained for part in self.parts)

    @property
    def frozen(self) -> int:
        """Scalars that the engine holds and does not train."""
        return sum(part.frozen for part in self.parts)

    @property
    def artifact_bytes(self) -> int:
        """Bytes of the weights in fp16."""
        return self.file_bytes(2)

    def file_bytes(self, width: int) -> int:
        """Bytes of the adapters' file, or of a full run's whole pipeline. width: of a number. Headers are estimated."""
        if self.kind == "full":
            return width * self.whole
        return width * self.trained + _HEADER_PER_TENSOR * sum(part.tensors for part in self.parts)

    @property
    def trained_bytes(self) -> int:
        """Bytes of the trained weights alone in fp16."""
        return 2 * self.trained


def sizes(recipe: Recipe, profile: ModelProfile) -> Sizes:
    """Exact counts. Raises UserError for a target that matches no layer."""
    names = ["unet", *(ENCODERS[n] for n in sorted(set(recipe.tuning.text_encoders)))]
    parts = tuple(_part(name, recipe, profile) for name in names)
    return Sizes(parts, profile.parameters(), recipe.tuning.kind)


def _part(name: str, recipe: Recipe, profile: ModelProfile) -> PartSize:
    component, tuning = profile.components[name], recipe.tuning
    if not isinstance(tuning, LoraTuning):
        trained = component.parameters - component.dead
        return PartSize(name, trained, component.dead, component.tensors, "full", 0)
    setting, targets = (
        ("target_modules", tuning.target_modules)
        if name == "unet"
        else ("text_target_modules", tuning.text_target_modules)
    )
    known = {".".join(tail) for layer in component.layers for full in layer.names for tail in _tails(full)}
    for target in targets:
        if not any(True for _ in component.adapted((target,))):
            short = {word for word in known if word.count(".") == 0 and not word.isdigit()}
            raise UserError(f"tuning.{setting} {target!r} matches no layer of the {name}: {nearest(target, short)}")
    trained = tensors = ranks = 0
    layers = list(component.adapted(targets))
    for layer, full in layers:
        rank = rank_of(full, tuning.rank, tuning.rank_pattern)
        trained += layer.lora_parameters(rank, tuning.use_dora)
        tensors += 3 if tuning.use_dora else 2
        ranks += rank
    attention = {"to_q", "to_k", "to_v", "to_out.0"} if name == "unet" else {"q_proj", "k_proj", "v_proj", "out_proj"}
    small = set(targets) <= attention
    mode: TuningMode = "lora" if small else "lora_all"
    exact = set(targets) == attention
    return PartSize(name, trained, component.parameters, tensors, mode, ranks / len(layers), approximate=not exact)


def _tails(name: str) -> list[list[str]]:
    words = name.split(".")
    return [words[i:] for i in range(len(words))]
