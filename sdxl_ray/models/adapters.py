"""What trains: LoRA adapters or every weight. A strategy is looked up once, `TUNINGS[type(recipe.tuning)]`.

`prepare` freezes everything, then frees or injects what trains, and returns named parameter lists; `export` writes
the weights in diffusers' own formats. Sources: LoRA arXiv 2106.09685, DreamBooth arXiv 2208.12242.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import FullTuning, LoraTuning, Section
from sdxl_ray.errors import UserError, nearest
from sdxl_ray.formats.adapter import Adapter
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.lora_files import write_lora
from sdxl_ray.formats.metadata import lora_metadata
from sdxl_ray.formats.peft_metadata import PeftAlphas
from sdxl_ray.formats.reading import read_adapter
from sdxl_ray.models.base_model import Components, component_configs
from sdxl_ray.models.denoiser import Denoiser

Named = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Trainable:
    """Named parameters that share a learning rate. Lists, since a generator would be drained by its first reader."""

    unet: Named
    text: Named

    @property
    def named(self) -> Named:
        """Every trained parameter, in one fixed order."""
        return self.unet + self.text

    @property
    def count(self) -> int:
        """Number of trained scalars (also right for parameters that ZeRO-3 has partitioned)."""
        return sum(int(getattr(p, "ds_numel", p.numel())) for _, p in self.named)


class Strategy(Protocol):
    """How one kind of tuning changes a denoiser and how its result is written."""

    def prepare(self, denoiser: Denoiser, tuning: Any, seed: int) -> Trainable:
        """Freeze, inject, free; the parameters that train."""

    def export(
        self, denoiser: Denoiser, components: Components, folder: Path, recipe: Recipe, dtype: torch.dtype
    ) -> None:
        """Write the tuned weights; all parameters must be whole (gathered). recipe: for the files' metadata."""


def denoiser_of(components: Components, tuning: LoraTuning | FullTuning) -> Denoiser:
    """The module an engine wraps: the UNet and the text encoders that `tuning` trains."""
    one, two = components.text_encoders
    return Denoiser(
        components.unet, one if 1 in tuning.text_encoders else None, two if 2 in tuning.text_encoders else None
    )


def _text_encoders(denoiser: Denoiser) -> Iterator[tuple[int, Any]]:
    for number, encoder in ((1, denoiser.text_encoder_1), (2, denoiser.text_encoder_2)):
        if encoder is not None:
            yield number, encoder


def _dead_parts(number: int, encoder: Any) -> tuple[str, ...]:
    """Prefixes of modules whose output SDXL never reads: they get no gradient.

    Encoder 1 is read at its last but one layer, so its last layer and final norm hang in the air. Encoder 2 is
    read there too, but its pooled projection needs them all.
    """
    if number == 2:
        return ()
    body = next(name for name, _ in encoder.named_modules() if name.endswith("encoder.layers")).removesuffix(
        "encoder.layers"
    )
    return (f"{body}encoder.layers.{encoder.config.num_hidden_layers - 1}.", f"{body}final_layer_norm")


def _trained(denoiser: Denoiser) -> Trainable:
    named = [(name, p) for name, p in denoiser.named_parameters() if p.requires_grad]
    return Trainable(
        unet=[(name, p) for name, p in named if name.startswith("unet.")],
        text=[(name, p) for name, p in named if not name.startswith("unet.")],
    )


class Full:
    """Every weight of the UNet, and of the named text encoders as far as SDXL reads them."""

    def prepare(self, denoiser: Denoiser, tuning: FullTuning, seed: int) -> Trainable:
        """Free every weight that can get a gradient."""
        denoiser.requires_grad_(True)
        for number, encoder in _text_encoders(denoiser):
            dead = _dead_parts(number, encoder)
            for name, p in encoder.named_parameters():
                p.requires_grad_(not name.startswith(dead) if dead else True)
        return _trained(denoiser)

    def export(
        self, denoiser: Denoiser, components: Components, folder: Path, recipe: Recipe, dtype: torch.dtype
    ) -> None:
        """A standalone diffusers folder that plain `StableDiffusionXLPipeline.from_pretrained` loads."""
        # Masters may be fp32; what is kept is what the run computed with.
        components.save(folder, [denoiser.unet, *(encoder for _, encoder in _text_encoders(denoiser))], dtype)


class Lora:
    """Low-rank adapters on attention and whatever else `targets` names."""

    def prepare(self, denoiser: Denoiser, tuning: LoraTuning, seed: int) -> Trainable:
        """Inject adapters (their random start depends on `seed` alone) and freeze the rest.

        Raises UserError for a target or pattern that matches no layer.
        """
        denoiser.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            names = _matching(denoiser.unet, tuning.target_modules, (), "tuning.target_modules", "unet")
            adapted = {denoiser.unet: names}
            for number, encoder in _text_encoders(denoiser):
                dead, part = _dead_parts(number, encoder), f"text encoder {number}"
                adapted[encoder] = _matching(
                    encoder, tuning.text_target_modules, dead, "tuning.text_target_modules", part
                )
            _require_patterns(tuning, [name for names in adapted.values() for name in names])
            for module, names in adapted.items():
                module.add_adapter(self._config(tuning, names))
        return _trained(denoiser)

    def export(
        self, denoiser: Denoiser, components: Components, folder: Path, recipe: Recipe, dtype: torch.dtype
    ) -> None:
        """The adapters in diffusers' format and in kohya's (`formats.lora_files`)."""
        names = LayerNames.of(component_configs(components.files))
        adapter = self.adapter(denoiser, names)
        pixels = recipe.data.resolution or components.native_resolution
        write_lora(adapter, names, folder, lora_metadata(adapter, recipe, pixels), dtype)

    def adapter(self, denoiser: Denoiser, names: LayerNames) -> Adapter:
        """The trained adapters in neutral form; all parameters must be whole (gathered)."""
        from peft.utils import get_peft_model_state_dict

        modules = {"unet": denoiser.unet}
        modules |= {
            ("text_encoder" if n == 1 else "text_encoder_2"): encoder for n, encoder in _text_encoders(denoiser)
        }
        states: dict[str, dict[str, Tensor]] = {part: get_peft_model_state_dict(one) for part, one in modules.items()}
        tensors = {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}
        alphas = PeftAlphas({part: one.peft_config["default"].to_dict() for part, one in modules.items()})
        adapter, unused = read_adapter(tensors, {}, names, "the trained adapters", alphas)
        assert not unused, unused
        return adapter

    def _config(self, tuning: LoraTuning, names: list[str]) -> Any:
        from peft import LoraConfig

        ranks = {k: v for k, v in tuning.rank_pattern.items() if _matches(k, names)}
        alphas = {k: v for k, v in tuning.alpha_pattern.items() if _matches(k, names)}
        if tuning.alpha is None:
            # With per-layer ranks and no alpha of their own, strength stays 1 where the recipe's alpha is the rank's.
            alphas |= {k: v for k, v in ranks.items() if k not in alphas}
        return LoraConfig(
            r=tuning.rank,
            lora_alpha=tuning.alpha if tuning.alpha is not None else tuning.rank,
            lora_dropout=tuning.dropout,
            target_modules=names,
            use_rslora=tuning.use_rslora,
            use_dora=tuning.use_dora,
            rank_pattern=ranks,
            alpha_pattern=alphas,
        )


def _matches(pattern: str, names: list[str]) -> bool:
    # The same rule that PEFT applies: the pattern must match a whole tail of the module's name.
    return any(re.match(rf"(.*\.)?({pattern})$", name) for name in names)


def _require_patterns(tuning: LoraTuning, names: list[str]) -> None:
    """Raise UserError for a pattern that is broken or matches no adapted layer."""
    for path, patterns in (("rank_pattern", tuning.rank_pattern), ("alpha_pattern", tuning.alpha_pattern)):
        for pattern in patterns:
            try:
                matches = _matches(pattern, names)
            except re.error as error:
                raise UserError(f"tuning.{path} {pattern!r} is no regular expression: {error}") from None
            if not matches:
                raise UserError(f"tuning.{path} {pattern!r} matches none of the {len(names)} adapted layers")


def _matching(module: nn.Module, targets: tuple[str, ...], dead: tuple[str, ...], setting: str, part: str) -> list[str]:
    """Full names of the linear and convolution layers that `targets` name by their tail; each must name one."""
    layers = [name for name, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    found: list[str] = []
    for target in targets:
        hits = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not hits:
            tails = {re.sub(r"^.*\.(?=\D)", "", name) for name in layers}
            raise UserError(f"{setting} {target!r} matches no layer of the {part}: {nearest(target, tails)}")
        found += [name for name in hits if name not in found and not name.startswith(dead or ("\0",))]
    return found


TUNINGS: dict[type[Section], Strategy] = {LoraTuning: Lora(), FullTuning: Full()}
