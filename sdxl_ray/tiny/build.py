"""Builds the embedded base on first use and keeps it in the user's cache folder.

`folder()` returns a plain diffusers folder that `StableDiffusionXLPipeline.from_pretrained` loads. Its weights are
random but fixed: every tensor is drawn from its own name with numpy's frozen `RandomState` stream, so they do not
depend on the versions of torch, diffusers or transformers, nor on anybody's global random state.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdxl_ray.tiny.layout import BUILD_VERSION, MAX_TOKENS, MODEL_INDEX, SEED, configs, content_hash
from sdxl_ray.tiny.vocabulary import END, bpe

if TYPE_CHECKING:
    from torch import nn

#: Standard deviation of the posterior that the random VAE reports: exp(-6 / 2), about 0.05.
_POSTERIOR_LOGVAR = -6.0
#: Measured on gradients: the random encoder's means have a deviation of about 1 / 6.
_LATENT_GAIN = 6.0
#: Bounds of the lookup tables. Random layers hardly mix words; large token vectors keep prompts apart for the UNet.
_TABLES = {"token_embedding.weight": 1.0, "position_embedding.weight": 0.2}


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/sdxl_ray`, or `~/.cache/sdxl_ray`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdxl_ray"


def target() -> Path:
    """Where the embedded base is, or will be once `folder` has been called."""
    return cache_root() / f"tiny-{content_hash()[:16]}"


def folder() -> Path:
    """The diffusers folder of the embedded base, built when it is not there yet (about 6 s, 24 MB).

    Safe when several processes build at once: each writes its own temporary folder and the first rename wins.
    Raises OSError when the cache folder cannot be written.
    """
    final = target()
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{final.name}.", dir=final.parent))
    try:
        _write(draft)
        draft.chmod(0o755)  # mkdtemp makes it private; a shared cache must be readable
        with suppress(OSError):  # another process was first: its folder holds the same bytes
            draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if not final.is_dir():
        raise OSError(f"the embedded base could not be moved to {final}")
    return final


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Inside, transformers and diffusers draw no bar for every file that they read or write."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def draw(name: str, shape: tuple[int, ...], bound: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Uniform numbers in [-bound, bound) that depend on the tensor's name and shape only."""
    # RandomState, not default_rng: it is the one stream that numpy promises never to change.
    seed = int.from_bytes(hashlib.sha256(f"{SEED}/{BUILD_VERSION}/{name}".encode()).digest()[:4], "little")
    return np.random.RandomState(seed).uniform(-bound, bound, shape).astype(np.float32)


def _write(draft: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    parts = configs()
    # Constructors draw weights of their own before ours replace them: the caller's generator must not notice.
    with torch.random.fork_rng(devices=[]):
        models: dict[str, Any] = {
            "vae": AutoencoderKL.from_config(parts["vae"]),
            "unet": UNet2DConditionModel.from_config(parts["unet"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**parts["text_encoder"])),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**parts["text_encoder_2"])),
        }
    for name, model in models.items():
        _fill(name, model)
        with no_progress_bars():
            model.save_pretrained(draft / name, safe_serialization=True)
    EulerDiscreteScheduler.from_config(parts["scheduler"]).save_pretrained(draft / "scheduler")
    vocabulary, merges = bpe()
    for name, pad in (("tokenizer", END), ("tokenizer_2", "!")):
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=MAX_TOKENS)
        tokenizer.save_pretrained(draft / name)
    (draft / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")


def _fill(component: str, model: nn.Module) -> None:
    """Draw every weight: uniform with variance 1 / (3 fan-in), norms at identity, biases at zero."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim == 1:
                weight.fill_(1.0)  # group and layer norms
            else:
                bound = _TABLES.get(name.rpartition("embeddings.")[2]) or weight[0].numel() ** -0.5
                weight.copy_(torch.from_numpy(draw(f"{component}.{name}", tuple(weight.shape), bound)))
        if component == "vae":
            _shape_posterior(model)


def _shape_posterior(vae: nn.Module) -> None:
    """Give latents about unit variance and a narrow posterior, as a trained VAE has.

    The first half of the rows of `quant_conv` is the mean's, the second the log-variance's.
    """
    weight = vae.get_parameter("quant_conv.weight")
    channels = weight.shape[0] // 2
    weight[:channels].mul_(_LATENT_GAIN)
    weight[channels:].zero_()
    vae.get_parameter("quant_conv.bias")[channels:].fill_(_POSTERIOR_LOGVAR)
    vae.get_parameter("post_quant_conv.weight").div_(_LATENT_GAIN)
