"""Profiles an architecture on the meta device: parameters, FLOP, activation bytes; no weight is in memory.

    python -m sdxl_ray.models.profile census.json < configs.json
    python -m sdxl_ray.models.profile sdxl_ray/plan/profiles/tiny.json tiny

The first reads the JSON configs of unet, vae, text_encoder and text_encoder_2; the second renews a shipped census.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.io.atomic import write_text
from sdxl_ray.models.base_model_files import component_configs, locate
from sdxl_ray.models.meta_memory import forward_bytes, same_attention, training_bytes
from sdxl_ray.plan.architecture import (
    COMPONENTS,
    PROGRESS,
    SDXL,
    TINY,
    Configs,
    key,
    profile,
    sdxl_configs,
    shape_settings,
)
from sdxl_ray.plan.profile import (
    LORA_RANK,
    Bytes,
    Component,
    LayerProfile,
    ModelProfile,
    Polynomial,
    Segment,
    TrainingProfile,
    TuningMode,
)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
#: Bytes are counted in 2-byte precision; fp32 doubles them (but for the log-sum-exps, a third of a per cent).
HALF = torch.bfloat16
TEXTS = ("text_encoder", "text_encoder_2")
Counted = TypeVar("Counted")
MODES: tuple[TuningMode, ...] = ("full", "lora", "lora_all")


def build(configs: Configs) -> dict[str, nn.Module]:
    """The four parts on the meta device, in fp32.

    Raises UserError when a config does not describe a module of SDXL's classes.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def text(kind: Any, config: dict[str, Any]) -> nn.Module:
        encoder: nn.Module = kind(CLIPTextConfig(**{**config, "attn_implementation": "sdpa"}))
        return encoder

    makers = {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": partial(text, CLIPTextModel),
        "text_encoder_2": partial(text, CLIPTextModelWithProjection),
    }
    parts: dict[str, nn.Module] = {}
    for name in COMPONENTS:
        try:
            with torch.device("meta"):
                parts[name] = makers[name](configs[name]).train()
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise UserError(f"{name}: {type(error).__name__}: {error}") from None
    return parts


def dead_prefixes(name: str, module: nn.Module) -> tuple[str, ...]:
    """Modules of text encoder 1 behind its last but one layer, which is where SDXL reads it."""
    if name != "text_encoder":
        return ()
    layers = next(n for n, _ in module.named_modules() if n.endswith("encoder.layers"))
    body = layers.removesuffix("encoder.layers")
    count = len(module.get_submodule(layers))  # type: ignore[arg-type]  # a ModuleList
    return (f"{layers}.{count - 1}.", f"{body}final_layer_norm")


def component(name: str, module: nn.Module) -> Component:
    """Counts of one part."""
    dead = dead_prefixes(name, module)
    grouped: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for layer_name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            grouped[layer.in_features, layer.out_features, 1].append(layer_name)
        elif isinstance(layer, nn.Conv2d):
            grouped[layer.in_channels, layer.out_channels, layer.kernel_size[0] * layer.kernel_size[1]].append(
                layer_name
            )
    return Component(
        parameters=sum(p.numel() for p in module.parameters()),
        tensors=sum(1 for _ in module.parameters()),
        dead=sum(p.numel() for n, p in module.named_parameters() if dead and n.startswith(dead)),
        dead_prefixes=dead,
        layers=tuple(
            LayerProfile(inputs=i, outputs=o, kernel=k, names=tuple(sorted(names)))
            for (i, o, k), names in sorted(grouped.items())
        ),
    )


class Profiler:
    """One architecture's parts and the inputs that fit them."""

    def __init__(self, name: str, configs: Configs) -> None:
        self.name, self.configs = name, configs
        self.parts = build(configs)
        self.tokens: int = min(
            configs[part].get("max_position_embeddings", 77) for part in ("text_encoder", "text_encoder_2")
        )
        self.vae_factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        # Half, three quarters and all of the native side, in steps that the UNet can halve at every level.
        unit = 2 ** (len(configs["unet"]["block_out_channels"]) - 1)
        quarter = max(unit, round(configs["unet"]["sample_size"] / 4 / unit) * unit)
        self.sides = (2 * quarter, 3 * quarter, 4 * quarter)

    def inputs(self, part: str, batch: int, side: int, dtype: torch.dtype) -> tuple[list[Tensor], Any]:
        """Meta tensors for one forward of a part, and a callable of the module that runs it."""
        make = partial(torch.empty, device="meta", dtype=dtype)
        if part == "unet":
            unet = self.configs["unet"]
            widths = [self.configs[text]["hidden_size"] for text in ("text_encoder", "text_encoder_2")]
            sample = make(batch, unet["in_channels"], side, side)
            states = make(batch, self.tokens, sum(widths))
            pooled = make(batch, self.configs["text_encoder_2"]["projection_dim"])
            times = torch.empty(batch, device="meta", dtype=torch.int64)
            sizes = torch.empty(batch, 6, device="meta")
            condition = {"text_embeds": pooled, "time_ids": sizes}
            return [sample, states, pooled, times, sizes], lambda m: m(
                sample, times, encoder_hidden_states=states, added_cond_kwargs=condition, return_dict=False
            )[0]
        if part == "vae_encode":
            image = make(batch, 3, side * self.vae_factor, side * self.vae_factor)
            return [image], lambda m: m.encode(image, return_dict=False)[0].mean
        if part == "vae_decode":
            latents = make(batch, self.configs["vae"].get("latent_channels", 4), side, side)
            return [latents], lambda m: m.decode(latents, return_dict=False)[0]
        ids = torch.empty(batch, self.tokens, device="meta", dtype=torch.int64)
        return [ids], partial(_text_forward, ids=ids, pooled=part == "text_encoder_2")

    def flop(self, part: str, module: nn.Module, train: bool) -> Polynomial:
        """FLOP (2 for each multiply and add) of one sample: a parabola through three sizes, exact for this network."""
        counts = []
        sides = self.sides if not part.startswith("text") else self.sides[:1]
        for side in sides:
            _, forward = self.inputs(part, 1, side, torch.float32)
            counter = FlopCounterMode(display=False)
            with torch.set_grad_enabled(train), counter:
                out = forward(module)
                if train:
                    torch.autograd.backward([out], [torch.empty_like(out)])
            counts.append(counter.get_total_flops())
            module.zero_grad(set_to_none=True)
        return (
            _parabola([side * side for side in sides], counts) if len(counts) == 3 else Polynomial(constant=counts[0])
        )

    def inference(self, part: str) -> Bytes:
        """Live bytes of a forward without gradients."""
        module = nn.Module.to(self.parts[_module_of(part)].eval(), HALF)

        def measure(batch: int, side: int) -> int:
            known, forward = self.inputs(part, batch, side, HALF)
            return forward_bytes([*known, *module.parameters(), *module.buffers()], lambda: forward(module))

        return _line(self.sides, (measure(1, self.sides[0]), measure(1, self.sides[2]), measure(2, self.sides[2])))

    def training(self, part: str, mode: TuningMode, checkpointing: bool) -> TrainingProfile:
        """FLOP and live bytes of a forward and backward of the UNet or a text encoder."""
        module = self._trainable(part, mode, LORA_RANK, checkpointing)
        flop = self.flop(part, module, train=True)
        segments = self._segments(part, nn.Module.to(module, HALF))
        rank_flop, rank_bytes = Polynomial(constant=0), Bytes(fixed=0, per_sample=0, per_latent_pixel=0.0)
        # What a checkpointed block keeps of its adapters lasts for that block only and never makes the peak.
        if mode != "full" and not checkpointing:
            # In between and beyond, everything is linear in the rank.
            wider = self._trainable(part, mode, 2 * LORA_RANK, checkpointing)
            rank_flop = _per_rank(flop, self.flop(part, wider, train=True))
            rank_bytes = _growth(segments[0].live, self._segments(part, nn.Module.to(wider, HALF))[0].live)
        return TrainingProfile(
            mode=mode,
            checkpointing=checkpointing,
            flop=flop,
            per_rank_flop=rank_flop,
            segments=segments,
            per_rank=rank_bytes,
        )

    def _trainable(self, part: str, mode: TuningMode, rank: int, checkpointing: bool) -> nn.Module:
        module = build(self.configs)[part]
        if mode == "full":
            dead = dead_prefixes(part, module)
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(not (dead and name.startswith(dead)))
        else:
            from peft import LoraConfig, inject_adapter_in_model

            module.requires_grad_(False)
            counted = component(part, module)
            small = ATTENTION if part == "unet" else TEXT_ATTENTION
            targets = small if mode == "lora" else tuple(name for layer in counted.layers for name in layer.names)
            names = [name for _, name in counted.adapted(targets)]
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
            module = inject_adapter_in_model(config, module, "default", low_cpu_mem_usage=True)
        if checkpointing:
            # Both libraries' models have this; neither lets its public method choose what the meta device needs.
            enable: Any = module._set_gradient_checkpointing
            enable(enable=True, gradient_checkpointing_func=_CHECKPOINT)
        return module.train()

    def _segments(self, part: str, module: nn.Module) -> tuple[Segment, ...]:
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)

        def measure(batch: int, side: int) -> list[tuple[int, int]]:
            known, forward = self.inputs(part, batch, side, HALF)
            return training_bytes(module, known, lambda: forward(module), _stretch)

        small, large, two = measure(1, self.sides[0]), measure(1, self.sides[2]), measure(2, self.sides[2])
        found = [
            Segment(gradients=done / trained, live=_line(self.sides, (a, b, c)))
            for (done, a), (_, b), (_, c) in zip(small, large, two, strict=True)
        ]
        return tuple(found)


def take(
    name: str,
    configs: Configs,
    like: tuple[Configs, ModelProfile] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ModelProfile:
    """The whole profile; minutes for SDXL, since it follows some hundred forwards and backwards.

    like: another architecture and its profile; parts that are the same in both are not followed again.
    on_progress(done, total) is called after each part and mode.
    """
    taker = Profiler(name, configs)
    works = ("unet", "vae_encode", "vae_decode", "text_encoder", "text_encoder_2")
    trains = ("unet", "text_encoder", "text_encoder_2")
    same = _same_parts(configs, like[0]) if like is not None else frozenset()
    known = like[1] if like is not None else None
    left = [part for part in works if _module_of(part) not in same]
    left_trains = [part for part in trains if part not in same]
    total, done = 2 * len(left) + 2 * len(MODES) * len(left_trains), 0

    def counted(value: Counted) -> Counted:
        nonlocal done
        done += 1
        on_progress(done, total)
        return value

    def flop(part: str) -> Polynomial:
        return counted(taker.flop(part, taker.parts[_module_of(part)], train=False))

    def training(part: str) -> tuple[TrainingProfile, ...]:
        return tuple(counted(taker.training(part, mode, again)) for mode in MODES for again in (False, True))

    return ModelProfile(
        name=name,
        key=key(configs),
        native_latent=configs["unet"]["sample_size"],
        vae_factor=taker.vae_factor,
        text_tokens=taker.tokens,
        components={part: component(part, module) for part, module in taker.parts.items()},
        flop={part: known.flop[part] if known and part not in left else flop(part) for part in works},
        inference={
            part: known.inference[part] if known and part not in left else counted(taker.inference(part))
            for part in works
        },
        training={
            part: known.training[part] if known and part not in left_trains else training(part) for part in trains
        },
    )


def _same_parts(configs: Configs, others: Configs) -> frozenset[str]:
    """Parts, the UNet apart, that have the same shapes and see the same inputs in both architectures."""
    mine, theirs = shape_settings(configs), shape_settings(others)
    if any(mine[part]["max_position_embeddings"] != theirs[part]["max_position_embeddings"] for part in TEXTS):
        return frozenset()
    if mine["unet"]["sample_size"] != theirs["unet"]["sample_size"]:
        return frozenset()
    return frozenset(part for part in COMPONENTS if part != "unet" and mine[part] == theirs[part])


def _module_of(part: str) -> str:
    return "vae" if part.startswith("vae") else part


# The meta device has no random state to keep; a recomputed block sees the same attention as the first time.
_CHECKPOINT = partial(checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=same_attention)


def _text_forward(module: nn.Module, ids: Tensor, pooled: bool) -> Tensor:
    out = module(ids, output_hidden_states=True)
    states: Tensor = out.hidden_states[-2]
    # Both outputs feed the UNet; one tensor that needs both keeps the whole graph alive.
    return states + out[0].sum() if pooled else states


def _stretch(parameter: str) -> str:
    """Top-level child, and the block's number where there are several: `up_blocks.1`, `encoder.layers.7`."""
    words = parameter.split(".")
    number = next((i for i, word in enumerate(words) if word.isdigit()), 0)
    return ".".join(words[: number + 1])


def _parabola(x: list[int], y: list[int]) -> Polynomial:
    # Newton's divided differences in whole numbers: FLOP counts are exact, so a remainder is a wrong model.
    first, second = (y[1] - y[0], x[1] - x[0]), (y[2] - y[1], x[2] - x[1])
    top = second[0] * first[1] - first[0] * second[1]
    bottom = first[1] * second[1] * (x[2] - x[0])
    quadratic, rest = divmod(top, bottom)
    linear, left = divmod(first[0] - quadratic * (x[1] ** 2 - x[0] ** 2), first[1])
    assert rest == 0 and left == 0, f"FLOP are not a parabola of latent pixels: {x} {y}"
    return Polynomial(constant=y[0] - linear * x[0] - quadratic * x[0] ** 2, linear=linear, quadratic=quadratic)


def _line(sides: tuple[int, ...], peaks: tuple[int, int, int]) -> Bytes:
    """Through one sample of the small and of the native size, and two of the native size."""
    small, native, two = peaks
    slope = (native - small) / (sides[2] ** 2 - sides[0] ** 2)
    sample = two - native
    return Bytes(fixed=native - sample, per_sample=round(sample - slope * sides[2] ** 2), per_latent_pixel=slope)


def _growth(at: Bytes, doubled: Bytes) -> Bytes:
    """What one more rank adds."""
    return Bytes(
        fixed=(doubled.fixed - at.fixed) // LORA_RANK,
        per_sample=(doubled.per_sample - at.per_sample) // LORA_RANK,
        per_latent_pixel=(doubled.per_latent_pixel - at.per_latent_pixel) / LORA_RANK,
    )


def _per_rank(at: Polynomial, doubled: Polynomial) -> Polynomial:
    return Polynomial(
        constant=(doubled.constant - at.constant) // LORA_RANK, linear=(doubled.linear - at.linear) // LORA_RANK
    )


def known() -> dict[str, Configs]:
    """Configs of the architectures whose profile is shipped, by name."""
    return {TINY: component_configs(locate(Base())), SDXL: sdxl_configs()}


def write(profile: ModelProfile, target: Path) -> None:
    """Write a profile; another process never sees half a file."""
    write_text(target, profile.model_dump_json(indent=1) + "\n", shared=True)


def _say_progress(done: int, total: int) -> None:
    sys.stderr.write(f"{PROGRESS} {done}/{total}\n")
    sys.stderr.flush()


def main() -> int:
    """`FILE NAME` takes a known architecture's profile, `FILE` one of the configs on stdin. Exit 2: not an SDXL."""
    target, *names = sys.argv[1:]
    try:
        if names:
            write(take(names[0], known()[names[0]]), Path(target))
        else:
            like = (sdxl_configs(), profile(sdxl_configs()))
            write(take("custom", json.load(sys.stdin), like, _say_progress), Path(target))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
