"""Which files a base is made of, found and checked without loading any weights or a framework.

`locate(recipe.base)` turns what a user wrote (tiny, a folder, a `.safetensors` file, a hub id with its commit) into a
`BaseFiles`, or explains in one line why it cannot. Pickled weights and custom pipeline code are refused here, before
anything could load them. `component_configs` reads the JSON that a plan needs.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdxl_ray.core import hub
from sdxl_ray.core.weightfiles import (
    MODEL_FILES,
    PICKLES,
    PIPELINE_FILES,
    PIPELINE_TEXT,
    content_revision,
    find_weights,
    read_header,
    read_json,
)
from sdxl_ray.errors import UserError
from sdxl_ray.sections import Base
from sdxl_ray.tiny import shipped

#: The only classes a base may name: nothing else is imported on behalf of a model_index.json.
MODELS = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_OTHER_PARTS = ("scheduler", "tokenizer", "tokenizer_2")
_PIPELINE = "StableDiffusionXLPipeline"
_FAMILIES = {
    "StableDiffusionPipeline": "Stable Diffusion 1.x or 2.x",
    "StableDiffusionXLImg2ImgPipeline": "the SDXL refiner",
    "StableDiffusionXLInpaintPipeline": "an inpainting SDXL",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "FluxPipeline": "FLUX",
}


@dataclass(frozen=True)
class BaseFiles:
    """A base that is present and complete on this machine.

    id: as written in the recipe. path: the folder or file. revision: the hub's commit, or SHA-256 over the content.
    config: folder with the JSON configs and tokenizers (the same as `path` unless `path` is a file).
    vae: folder of a VAE that replaces the base's own, with its revision.
    """

    id: str
    kind: Literal["folder", "file"]
    path: Path
    revision: str
    config: Path
    vae: Path | None = None
    vae_revision: str | None = None

    @property
    def content(self) -> str:
        """SHA-256 that changes whenever any weight can have changed, a replaced VAE included; for cache keys."""
        return hashlib.sha256(f"{self.revision}/{self.vae_revision}".encode()).hexdigest()


def locate(base: Base) -> BaseFiles:
    """Find and check the base's files; downloads a hub id. Reads no weights, except to hash a local file once.

    Raises UserError, one line: not there, not SDXL (and what it is), pickled, incomplete, truncated, unreachable, or
    not the embedded base that was shipped.
    """
    files = _locate_tiny(base) if base.id == "tiny" else _locate_path_or_hub(base)
    if base.vae is None:
        return files
    vae, revision = _locate_vae(base)
    return BaseFiles(files.id, files.kind, files.path, files.revision, files.config, vae, revision)


def component_configs(files: BaseFiles) -> dict[str, dict[str, Any]]:
    """The JSON configs of unet, vae, text_encoder, text_encoder_2 and scheduler."""
    configs = {name: read_json(files.config / name / "config.json") for name in MODELS}
    scheduler = read_json(files.config / "scheduler" / "scheduler_config.json")
    configs["scheduler"] = {**scheduler, **single_file_changes(files)}
    if files.vae is not None:
        configs["vae"] = read_json(files.vae / "config.json")
    return configs


def single_file_changes(files: BaseFiles) -> dict[str, Any]:
    """What the markers in a single file (`v_pred`, `ztsnr`) say about its scheduler; such files have no config."""
    header = read_header(files.path, f"base {files.id!r}") if files.kind == "file" else {}
    changes: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in header else {}
    if changes and "ztsnr" in header:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return changes


def _locate_tiny(base: Base) -> BaseFiles:
    if base.revision is not None:
        raise UserError(f"base.revision = {base.revision!r}: the embedded base has none, leave it out")
    folder = shipped.folder()
    return BaseFiles("tiny", "folder", folder, shipped.revision(), folder)


def _locate_path_or_hub(base: Base) -> BaseFiles:
    path = Path(base.id).expanduser()
    if path.suffix in PICKLES:
        raise UserError(f"base {base.id!r} is a pickle, which can run code when loaded: give a .safetensors file")
    if path.is_dir():
        check_folder(path, base.id)
        return BaseFiles(base.id, "folder", path, content_revision(path, PIPELINE_FILES), path)
    if path.is_file():
        return _locate_file(base, path)
    if path.suffix == ".safetensors":
        raise UserError(f"base {base.id!r}: no such file")
    if not hub.is_id(base.id):
        raise UserError(
            f"base {base.id!r}: no such folder; give tiny, a diffusers folder, a .safetensors file or a hub id"
        )
    revision = hub.require_commit("base", base.id, base.revision)
    snapshot = hub.snapshot("base", base.id, revision, PIPELINE_FILES, lambda folder: check_folder(folder, base.id))
    return BaseFiles(base.id, "folder", snapshot, revision, snapshot)


def _locate_file(base: Base, path: Path) -> BaseFiles:
    if path.suffix != ".safetensors":
        raise UserError(f"base {base.id!r}: a single file must be .safetensors, got {path.suffix or 'no suffix'!r}")
    _check_single_file(path, base.id)
    if base.config is not None:
        config = Path(base.config).expanduser()
        if not config.is_dir():
            raise UserError(
                f"base.config {base.config!r}: no such folder; it holds the configs and tokenizers of an SDXL"
            )
        check_folder(config, base.config, weights=False)
    else:
        config = hub.sdxl_configs(base.id, lambda folder: check_folder(folder, "SDXL", weights=False))
    # The configs decide what the weights mean (prediction type, scaling factor): they belong to the revision.
    both = f"{content_revision(path)}/{content_revision(config, PIPELINE_TEXT)}"
    return BaseFiles(base.id, "file", path, hashlib.sha256(both.encode()).hexdigest(), config)


def _locate_vae(base: Base) -> tuple[Path, str]:
    assert base.vae is not None
    path = Path(base.vae).expanduser()
    if path.suffix in PICKLES or path.is_file():
        raise UserError(f"base.vae {base.vae!r} is a file: give a diffusers VAE folder with safetensors, or a hub id")
    if path.is_dir():
        if not (path / "config.json").is_file() and (path / "vae" / "config.json").is_file():
            raise UserError(f"base.vae {base.vae!r} is a whole pipeline: give its VAE, {str(path / 'vae')!r}")
        _check_model(path, "vae", base.vae)
        return path, content_revision(path, MODEL_FILES)
    if not hub.is_id(base.vae):
        raise UserError(f"base.vae {base.vae!r}: no such folder, and not a hub id")
    revision = hub.require_commit("base.vae", base.vae, base.vae_revision)
    name = base.vae
    return hub.snapshot("base.vae", name, revision, MODEL_FILES, lambda f: _check_model(f, "vae", name)), revision


def check_folder(folder: Path, name: str, *, weights: bool = True) -> None:
    """Raise UserError unless `folder` is a complete SDXL in diffusers layout with safetensors weights only."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise UserError(f"base {name!r} holds no model_index.json: give a diffusers folder of SDXL{_hint(folder)}")
    index = read_json(index_file)
    pipeline = index.get("_class_name")
    if pipeline != _PIPELINE:
        family = _FAMILIES.get(str(pipeline), f"made for {pipeline!r}")
        raise UserError(f"base {name!r} is not SDXL but {family}: give a folder for {_PIPELINE}")
    for part in (*MODELS, *_OTHER_PARTS):
        entry = index.get(part)
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
            raise UserError(f"base {name!r} is not SDXL: its model_index.json has no {part}")
        allowed = MODELS.get(part)
        trusted = entry == allowed if allowed else entry[0] in ("diffusers", "transformers")
        if not trusted:
            raise UserError(
                f"base {name!r}: {part} is {'.'.join(entry)}, which is not SDXL's; custom code is never loaded"
            )
    _check_configs(folder, name)
    if weights:
        for part in MODELS:
            find_weights(folder / part, f"base {name!r}: {part}")


def _check_configs(folder: Path, name: str) -> None:
    for part in MODELS:
        _require(folder / part / "config.json", name)
    _require(folder / "scheduler" / "scheduler_config.json", name)
    for part in ("tokenizer", "tokenizer_2"):
        if not ((folder / part / "vocab.json").is_file() and (folder / part / "merges.txt").is_file()):
            _require(folder / part / "tokenizer.json", name)
    unet = read_json(folder / "unet" / "config.json")
    kind = unet.get("addition_embed_type")
    if kind != "text_time":
        raise UserError(f"base {name!r} is not SDXL: its UNet has addition_embed_type {kind!r}, SDXL's is 'text_time'")
    if unet.get("in_channels", 4) != unet.get("out_channels", 4):
        channels = unet.get("in_channels")
        raise UserError(
            f"base {name!r} is an inpainting or editing SDXL ({channels} input channels): give a plain SDXL"
        )


def _check_model(folder: Path, part: str, name: str) -> None:
    _require(folder / "config.json", name)
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != MODELS[part][1]:
        raise UserError(f"base.{part} {name!r} is {kind!r}, not {MODELS[part][1]}")
    find_weights(folder, f"base.{part} {name!r}")


def _require(file: Path, name: str) -> None:
    if not file.is_file():
        raise UserError(
            f"base {name!r} is incomplete: {file.parent.name}/{file.name} is missing; copy or download it again"
        )


def _hint(folder: Path) -> str:
    """What else a folder without model_index.json may be."""
    single = sorted(file.name for file in folder.glob("*.safetensors"))
    if single:
        return f", or the single file {single[0]} inside it"
    if any(file.suffix in PICKLES for file in folder.iterdir()):
        return "; the pickled weights in it are never loaded"
    return ""


def _check_single_file(path: Path, name: str) -> None:
    """Recognise SDXL by the names and shapes in the header, as ComfyUI and diffusers do, and name what else it is."""
    header = read_header(path, f"base {name!r}")
    label = header.get("model.diffusion_model.label_emb.0.0.weight", {}).get("shape")
    encoders = {match[1] for key in header if (match := re.match(r"conditioner\.embedders\.(\d)\.", key))}
    if label is not None and encoders == {"0", "1"}:
        stem = header.get("model.diffusion_model.input_blocks.0.0.weight", {}).get("shape", [0, 0])
        out = header.get("model.diffusion_model.out.2.weight", {}).get("shape", [0])
        if stem[1:2] != out[:1]:
            raise UserError(
                f"base {name!r} is an inpainting or editing SDXL ({stem[1]} input channels): give a plain SDXL"
            )
        return
    raise UserError(f"base {name!r} is not SDXL but {_family(header, encoders)}")


def _family(header: dict[str, Any], encoders: set[str]) -> str:
    if encoders == {"0"}:
        return "the SDXL refiner"
    if any(key.startswith("cond_stage_model.") for key in header):
        return "Stable Diffusion 1.x or 2.x"
    if any(key.startswith(("lora_", "unet.")) or ".lora_" in key for key in header):
        return "a LoRA: a base is the whole model it was made on"
    if any(key.startswith("model.diffusion_model.joint_blocks") for key in header):
        return "Stable Diffusion 3"
    if any("double_blocks" in key for key in header):
        return "FLUX"
    example = next(iter(sorted(header)), "nothing")
    return f"something else (its first tensor is {json.dumps(example)}): give a whole SDXL checkpoint"
