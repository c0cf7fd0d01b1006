"""Settings of a recipe that cannot work together: what another setting switches off, and what would learn nothing.

`refuse` is a validator of every recipe, so files, command lines and the trials of a search all go through it. What may
be meant, if rarely, is no error but a note: see `sdxl_ray.config.notes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdxl_ray.config.recipe import Recipe

#: Below this, min-SNR all but removes the loss of most timesteps; above, it clips none (SDXL's SNR ends near 1,200).
LEAST_GAMMA, MOST_GAMMA = 0.5, 1000.0
#: Prodigy multiplies the rate that it estimates by `optim.lr`.
PRODIGY_LR = (0.1, 10.0)

#: Words in brackets that other trainers and interfaces replace; here they would be learnt as they are written.
_PLACEHOLDER = re.compile(
    r"\[(?:trigger|filewords|name|token|instance|identifier|subject|class|caption|concept|keyword)\]"
    r"|\{(?:trigger|filewords|name|token|instance|identifier|subject|class|caption|concept|keyword|\d*)\}"
    r"|<(?:trigger|name|token|instance|identifier|subject|class|caption|concept|keyword|s\d+|lora:[^<>]*|lyco:[^<>]*)>"
    r"|__[A-Za-z0-9/-]+__",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Needs:
    """A setting that has an effect only where `used` holds; `fix`: what makes it hold."""

    path: str
    used: Callable[[Recipe], bool]
    fix: str


def _biased(recipe: Recipe) -> bool:
    bias = recipe.objective.timestep_bias
    return (bias.begin, bias.end) != (0.0, 1.0)


def _trains_text(recipe: Recipe) -> bool:
    return bool(recipe.tuning.text_encoders)


_NEEDS = (
    _Needs("base.vae_revision", lambda r: r.base.vae is not None, "set base.vae to a hub id"),
    _Needs("base.config", lambda r: r.base.id.endswith(".safetensors"), "set base.id to a single .safetensors file"),
    _Needs("data.crop_variants", lambda r: r.data.crop == "random", "set data.crop=random"),
    _Needs("objective.snr_gamma", lambda r: r.objective.weighting == "min_snr", "set objective.weighting=min_snr"),
    _Needs("objective.huber_delta", lambda r: r.objective.loss == "huber", "set objective.loss=huber"),
    _Needs(
        "objective.timestep_bias.multiplier",
        _biased,
        "narrow objective.timestep_bias.begin and end to a part of 0 to 1",
    ),
    *(
        _Needs(
            f"objective.timestep_bias.{end}",
            lambda r: r.objective.timestep_bias.multiplier != 1,
            "set objective.timestep_bias.multiplier",
        )
        for end in ("begin", "end")
    ),
    _Needs("optim.text_lr", _trains_text, "set tuning.text_encoders, for example [1, 2]"),
    _Needs("tuning.text_target_modules", _trains_text, "set tuning.text_encoders, for example [1, 2]"),
    _Needs(
        "optim.warmup_steps",
        lambda r: r.optim.lr_scheduler not in ("constant", "piecewise_constant"),
        "set optim.lr_scheduler=constant_with_warmup",
    ),
    _Needs(
        "optim.lr_num_cycles",
        lambda r: r.optim.lr_scheduler in ("cosine", "cosine_with_restarts"),
        "set optim.lr_scheduler=cosine_with_restarts",
    ),
    _Needs("optim.lr_power", lambda r: r.optim.lr_scheduler == "polynomial", "set optim.lr_scheduler=polynomial"),
)


def refuse(recipe: Recipe) -> None:
    """Raise ValueError, one line, for the first setting that has no effect or cannot work."""
    _refuse_optimizer(recipe)
    for need in _NEEDS:
        value, default = value_and_default(recipe, need.path)
        if value != default and not need.used(recipe):
            raise ValueError(
                f"{need.path} = {_said(value)} has no effect here: {need.fix}, or {need.path}={_said(default)}"
            )
    _refuse_prompts(recipe)
    gamma = recipe.objective.snr_gamma
    if recipe.objective.weighting == "min_snr" and not LEAST_GAMMA <= gamma <= MOST_GAMMA:
        why = "all but removes the loss" if gamma < LEAST_GAMMA else "weighs every timestep alike, as weighting none"
        raise ValueError(
            f"objective.snr_gamma = {gamma:g} {why}: set {LEAST_GAMMA:g} to {MOST_GAMMA:g}, 5 is the paper's"
        )
    encoders = recipe.tuning.text_encoders
    if len(set(encoders)) < len(encoders):
        raise ValueError(f"tuning.text_encoders = {list(encoders)} names one twice: write [1], [2] or [1, 2]")


def value_and_default(section: Any, path: str) -> tuple[Any, Any]:
    """The value at a dotted path of a recipe and that field's default; (None, None) where there is no such field."""
    *parents, last = path.split(".")
    for name in parents:
        section = getattr(section, name)
    field = type(section).model_fields.get(last)
    return (None, None) if field is None else (getattr(section, last), field.default)


def placeholder(text: str, subject: str | None) -> str | None:
    """The first placeholder of another trainer in a caption or prompt, unless the subject itself is written so."""
    found = _PLACEHOLDER.search(text)
    return found[0] if found and found[0].lower() not in (subject or "").lower() else None


def _refuse_optimizer(recipe: Recipe) -> None:
    optim = recipe.optim
    if optim.name != "prodigy":
        return
    least, most = PRODIGY_LR
    if not least <= optim.lr <= most:
        raise ValueError(
            f"optim.lr = {optim.lr:g}: prodigy estimates the rate and multiplies it by lr, which is {least:g} to "
            f"{most:g}: set optim.lr=1.0, or optim.name=adamw"
        )
    if optim.text_lr not in (None, optim.lr):
        raise ValueError(
            f"optim.text_lr = {optim.text_lr:g}: prodigy finds one rate for all weights; leave it out, or set "
            f"{optim.lr:g}"
        )


def _refuse_prompts(recipe: Recipe) -> None:
    data, prior = recipe.data, recipe.data.prior
    prompts = [("data.subject", data.subject), ("data.prompt", data.prompt)]
    prompts += [("evaluation.prompts", prompt) for prompt in recipe.evaluation.prompts]
    prompts += [("data.prior.prompt", prior.prompt)] if prior is not None else []
    for path, prompt in prompts:
        subject = None if path == "data.subject" else data.subject
        if prompt is not None and (found := placeholder(prompt, subject)) is not None:
            raise ValueError(f"{path} = {prompt!r}: nothing replaces {found}: write the words themselves, 'sks dog'")
    if prior is None:
        return
    if prior.images is not None and prior.images == data.images:
        raise ValueError(
            f"data.prior.images = {prior.images!r} is data.images too: class images show others of the class: give a "
            "folder of those, or leave it out, and the base draws them"
        )
    if prior.prompt is not None and data.subject is not None and says(prior.prompt, data.subject):
        raise ValueError(
            f"data.prior.prompt = {prior.prompt!r} names the subject {data.subject!r}: class images are of the class "
            f"alone, as 'a photo of a {data.known_class or 'dog'}'"
        )


def says(text: str, words: str) -> bool:
    """Whether the words stand in the text, whatever their case and the spaces between them."""
    wanted = r"\s+".join(map(re.escape, words.split()))
    return re.search(rf"(?<!\w){wanted}(?!\w)", text, re.IGNORECASE) is not None


def _said(value: Any) -> str:
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value)
