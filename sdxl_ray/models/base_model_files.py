"""Which files a base is made of, found and checked without loading any weights or a framework.

`locate(recipe.base)` turns what a user wrote (tiny, a folder, a `.safetensors` file, a hub id with its commit) into a
`BaseFiles`, or explains in one line why it cannot. Pickled weights and custom pipeline code are refused here, before
anything could load them. `component_configs` reads the JSON that a plan needs.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdxl_ray.config.file_names import did_you_mean, existing
from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.io.safetensors_files import (
    MODEL_FILES,
    PICKLES,
    PIPELINE_FILES,
    PIPELINE_TEXT,
    content_revision,
    find_weights,
    read_header,
    read_json,
)
from sdxl_ray.io.sdxl_single_file import CONFIGS, require_sdxl_shapes
from sdxl_ray.models import hub, model_kinds
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
#: Without these a config means another model, or none: the libraries would fill in those of Stable Diffusion 1.
_NEEDED = {
    "text_encoder": ("hidden_size", "num_hidden_layers", "num_attention_heads"),
    "text_encoder_2": ("hidden_size", "num_hidden_layers", "num_attention_heads", "projection_dim"),
    "unet": ("block_out_channels", "cross_attention_dim", "projection_class_embeddings_input_dim"),
    "vae": ("block_out_channels", "latent_channels", "scaling_factor"),
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
    path = existing(path)
    if path.is_dir():
        check_folder(path, base.id)
        return BaseFiles(base.id, "folder", path, content_revision(path, PIPELINE_FILES), path)
    if path.is_file():
        return _locate_file(base, path)
    if path.suffix == ".safetensors":
        raise UserError(f"base {base.id!r}: no such file{did_you_mean(path)}")
    if not hub.is_id(base.id):
        raise UserError(
            f"base {base.id!r}: no such folder; give tiny, a diffusers folder, a .safetensors file or a hub id"
            f"{did_you_mean(path)}"
        )
    revision = hub.require_commit("base", base.id, base.revision)
    snapshot = hub.snapshot("base", base.id, revision, PIPELINE_FILES, lambda folder: check_folder(folder, base.id))
    return BaseFiles(base.id, "folder", snapshot, revision, snapshot)


def _locate_file(base: Base, path: Path) -> BaseFiles:
    if path.suffix != ".safetensors":
        raise UserError(f"base {base.id!r}: a single file must be .safetensors, got {path.suffix or 'no suffix'!r}")
    _check_single_file(path, base)
    if base.config is not None:
        config = Path(base.config).expanduser()
        if not config.is_dir():
            raise UserError(
                f"base.config {base.config!r}: no such folder; it holds the configs and tokenizers of an SDXL"
            )
        check_folder(config, base.config, weights=False)
    else:
        require_sdxl_shapes(read_header(path, f"base {base.id!r}"), base.id)
        config = CONFIGS
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
        what = model_kinds.of_folder(folder)
        raise UserError(
            f"base {name!r} holds no model_index.json: give a diffusers folder of SDXL{what and f', {what}'}"
        )
    index = read_json(index_file)
    pipeline = index.get("_class_name")
    if pipeline != _PIPELINE:
        raise UserError(f"base {name!r} is not SDXL but {model_kinds.of_pipeline(index)}")
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
    for part, keys in _NEEDED.items():
        config = read_json(folder / part / "config.json")
        missing = [key for key in keys if config.get(key) is None]
        if missing:
            raise UserError(f"base {name!r}: {part}/config.json has no {', '.join(missing)}: copy or download it again")
    unet = read_json(folder / "unet" / "config.json")
    kind = unet.get("addition_embed_type")
    if kind != "text_time":
        raise UserError(f"base {name!r} is not SDXL: its UNet has addition_embed_type {kind!r}, SDXL's is 'text_time'")
    if unet.get("in_channels", 4) != unet.get("out_channels", 4):
        channels = unet.get("in_channels")
        raise UserError(
            f"base {name!r} is an inpainting or editing SDXL ({channels} input channels): give a plain SDXL, with 4"
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


def _check_single_file(path: Path, base: Base) -> None:
    """Recognise SDXL by the names and shapes in the header, as ComfyUI and diffusers do, and name what else it is."""
    header = read_header(path, f"base {base.id!r}")
    label = "model.diffusion_model.label_emb.0.0.weight"
    encoders = {match[1] for key in header if (match := re.match(r"conditioner\.embedders\.(\d)\.", key))}
    if label not in header or encoders != {"0", "1"}:
        raise UserError(f"base {base.id!r} is not SDXL but {model_kinds.of_header(header, encoders)}")
    stem = header.get("model.diffusion_model.input_blocks.0.0.weight", {}).get("shape", [0, 0])
    out = header.get("model.diffusion_model.out.2.weight", {}).get("shape", [0])
    if stem[1:2] != out[:1]:
        raise UserError(
            f"base {base.id!r} is an inpainting or editing SDXL ({stem[1]} input channels): give a plain SDXL, with 4"
        )
    if base.vae is None and not any(key.startswith("first_stage_model.") for key in header):
        raise UserError(
            f"base {base.id!r} has no VAE: set base.vae=FOLDER (a diffusers VAE folder), or a hub id as "
            "base.vae=madebyollin/sdxl-vae-fp16-fix with base.vae_revision=COMMIT"
        )
