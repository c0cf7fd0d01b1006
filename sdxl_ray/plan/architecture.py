"""Which architecture a base has, from its JSON configs alone, and the profile that belongs to it.

A profile (counts, FLOP and activation bytes of one architecture; `sdxl_ray.models.profile` takes it on the meta
device) is shipped for
Stable Diffusion XL 1.0 and the embedded base. Any other is taken once, in a child process so that
planning itself loads no framework, and kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from sdxl_ray.cache_folder import cache_root
from sdxl_ray.config.schema import Base
from sdxl_ray.display.progress import Progress
from sdxl_ray.errors import UserError
from sdxl_ray.io.safetensors_files import read_header
from sdxl_ray.io.sdxl_single_file import CONFIGS, require_sdxl_shapes
from sdxl_ray.plan.profile import ModelProfile

Configs = dict[str, dict[str, Any]]

SDXL = "sdxl-base-1.0"
TINY = "tiny"
#: The command that profiles an architecture: configs on stdin, the file to write as its last argument.
CHILD = [sys.executable, "-m", "sdxl_ray.models.profile"]
#: How that command's lines of progress begin.
PROGRESS = "counted"
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")

# What decides a part's shapes, with the library's own defaults: configs differ in which defaults they spell out.
_UNET = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_head_dim": 8,
    "attention_type": "default",
    "block_out_channels": [320, 640, 1280, 1280],
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 1280,
    "cross_attention_norm": None,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "dual_cross_attention": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": None,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
    "time_cond_proj_dim": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": None,
}
_VAE = {
    "act_fn": "silu",
    "block_out_channels": [64],
    "down_block_types": ["DownEncoderBlock2D"],
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"],
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_TEXT = {
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "projection_dim": 512,
    "vocab_size": 49408,
}
_RELEVANT: dict[str, dict[str, Any]] = {"unet": _UNET, "vae": _VAE, "text_encoder": _TEXT, "text_encoder_2": _TEXT}


def key(configs: Configs) -> str:
    """SHA-256 over what decides the shapes of the four parts; equal configs spelled differently have equal keys."""
    return hashlib.sha256(json.dumps(shape_settings(configs), sort_keys=True).encode()).hexdigest()


def shape_settings(configs: Configs) -> Configs:
    """What decides the shapes of each part, defaults written out."""
    plain = {
        part: {name: configs[part].get(name, default) or None for name, default in relevant.items()}
        for part, relevant in _RELEVANT.items()
    }
    # The first encoder's projection is part of its config, but SDXL's `CLIPTextModel` has none.
    plain["text_encoder"].pop("projection_dim")
    return plain


def sdxl_configs() -> Configs:
    """The configs of Stable Diffusion XL base 1.0."""
    return _folder_configs(CONFIGS)


@dataclass(frozen=True)
class Architecture:
    """A base's profile and, when its configs could not be read here, what was assumed instead."""

    profile: ModelProfile
    assumption: str | None = None


def of(base: Base) -> Architecture:
    """The architecture of a recipe's base, without network and without a framework.

    A hub id whose configs are not on this machine, and a single file that is not here, count as SDXL base 1.0 and the
    result says so. Raises UserError when a folder's configs are missing or not SDXL's, or a single file needs others.
    """
    if base.id == TINY:
        return Architecture(next(c for c in _shipped().values() if c.name == TINY))
    folder = Path(base.id).expanduser()
    if folder.is_dir():
        return Architecture(profile(_folder_configs(folder)))
    if base.config is not None and Path(base.config).expanduser().is_dir():
        return Architecture(profile(_folder_configs(Path(base.config).expanduser())))
    if folder.is_file():
        require_sdxl_shapes(read_header(folder, f"base {base.id!r}"), base.id)
        return Architecture(profile(sdxl_configs()))
    snapshot = _hub_snapshot(base)
    if snapshot is not None:
        return Architecture(profile(_folder_configs(snapshot)))
    known = base.id == "stabilityai/stable-diffusion-xl-base-1.0"
    note = None if known else f"{base.id} has the shapes of SDXL base 1.0 (its configs are not on this machine)"
    return Architecture(profile(sdxl_configs()), note)


def profile(configs: Configs) -> ModelProfile:
    """The shipped or cached profile of these configs, or a new one."""
    wanted = key(configs)
    shipped = _shipped().get(wanted)
    if shipped is not None:
        return shipped
    cached = cache_root() / "census" / f"{wanted}.json"
    if not cached.exists():
        _take(configs, cached)
    return ModelProfile.model_validate_json(cached.read_bytes())


@cache
def _shipped() -> dict[str, ModelProfile]:
    folder = resources.files("sdxl_ray.plan") / "profiles"
    found = [ModelProfile.model_validate_json(f.read_bytes()) for f in folder.iterdir() if f.name.endswith(".json")]
    return {c.key: c for c in found}


def _take(configs: Configs, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    reason = "no message"
    with (
        Progress(sys.stderr) as progress,
        subprocess.Popen([*CHILD, str(target)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdin is not None
        assert child.stderr is not None
        child.stdin.write(json.dumps(configs))
        child.stdin.close()
        for line in child.stderr:
            counted = re.fullmatch(rf"{PROGRESS} (\d+)/(\d+)\n", line)
            if counted:
                done, total = int(counted[1]), int(counted[2])
                progress.row({"kind": "phase", "name": "counting a new architecture", "done": done, "total": total})
            else:
                reason = line.strip() or reason
    if child.returncode != 0:
        raise UserError(f"the base's configs do not describe an SDXL that can be counted: {reason}")


def _folder_configs(folder: Path) -> Configs:
    configs: Configs = {}
    for part in COMPONENTS:
        path = folder / part / "config.json"
        try:
            configs[part] = json.loads(path.read_text())
        except OSError:
            raise UserError(
                f"base {str(folder)!r} has no {part}/config.json: give a whole diffusers SDXL folder"
            ) from None
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from None
    if configs["unet"].get("addition_embed_type") != "text_time":
        kind = configs["unet"].get("addition_embed_type")
        raise UserError(
            f"base {str(folder)!r} is not SDXL: its UNet's addition_embed_type is {kind!r}, not 'text_time'"
        )
    return configs


def _hub_snapshot(base: Base) -> Path | None:
    """A complete set of configs of this hub id in the local hub cache, if there is one."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache_folder = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    if base.revision is None:
        return None
    snapshot = cache_folder / f"models--{base.id.replace('/', '--')}" / "snapshots" / base.revision
    whole = all((snapshot / part / "config.json").is_file() for part in COMPONENTS)
    return snapshot if whole else None
