"""Bases: finds an SDXL, checks it and loads it into memory.

    files = locate(recipe.base)                                   # what and where; see basefiles.py
    parts = load_components(files, recipe.base, dtype=torch.float32, device=torch.device("cpu"))
    parts.pipeline()("a photo of a dog")

torch and diffusers are imported inside the functions that need them, so that a plan can use `locate` and
`component_configs` without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_ray.config import Base
from sdxl_ray.core.basefiles import MODELS, BaseFiles, component_configs, locate
from sdxl_ray.core.weightfiles import find_weights, read_header, read_json
from sdxl_ray.errors import UserError
from sdxl_ray.tiny import build

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

__all__ = ["BaseFiles", "Components", "component_configs", "load_components", "locate"]


@dataclass
class Components:
    """The parts of one SDXL in memory: in evaluation mode, no weight requires a gradient.

    tokenizers and text_encoders are (1, 2) in SDXL's order; the VAE may have another dtype than the rest.
    """

    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
    text_encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection]
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: Any
    files: BaseFiles
    force_zeros_for_empty_prompt: bool = True

    def pipeline(self) -> StableDiffusionXLPipeline:
        """The parts as a pipeline; nothing is copied, so what trains here is what draws there."""
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=self.text_encoders[0],
            text_encoder_2=self.text_encoders[1],
            tokenizer=self.tokenizers[0],
            tokenizer_2=self.tokenizers[1],
            unet=self.unet,
            scheduler=self.scheduler,
            force_zeros_for_empty_prompt=self.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )


def load_components(files: BaseFiles, base: Base, *, dtype: torch.dtype, device: torch.device | str) -> Components:
    """Load the base. UNet and text encoders in `dtype`, the VAE in `base.vae_precision` (auto: fp32).

    The VAE keeps its `force_upcast` setting, which a saved copy needs again. Raises UserError when a file does not
    fit its config.
    """
    import torch

    vae_dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(base.vae_precision, torch.float32)
    if files.is_tiny:
        try:
            build.folder()
        except OSError as error:
            raise UserError(
                f"the embedded base cannot be built in {files.path.parent}: {error}; set XDG_CACHE_HOME"
            ) from None
    load = _load_file if files.kind == "file" else _load_folder
    try:
        with build.no_progress_bars():
            loaded = load(files, dtype, vae_dtype)
            if files.vae is not None:
                loaded["vae"] = _load_model("vae", files.vae, vae_dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, UserError | torch.OutOfMemoryError):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"base {files.id!r} cannot be loaded: {first[:300]}") from error
    for name in MODELS:
        loaded[name].to(device).eval().requires_grad_(False)
    return Components(
        tokenizers=(loaded["tokenizer"], loaded["tokenizer_2"]),
        text_encoders=(loaded["text_encoder"], loaded["text_encoder_2"]),
        vae=loaded["vae"],
        unet=loaded["unet"],
        scheduler=loaded["scheduler"],
        files=files,
        force_zeros_for_empty_prompt=bool(
            read_json(files.config / "model_index.json").get("force_zeros_for_empty_prompt", True)
        ),
    )


def _load_folder(files: BaseFiles, dtype: torch.dtype, vae_dtype: torch.dtype) -> dict[str, Any]:
    loaded = {name: _load_model(name, files.path / name, dtype) for name in ("unet", "text_encoder", "text_encoder_2")}
    if files.vae is None:
        loaded["vae"] = _load_model("vae", files.path / "vae", vae_dtype)
    return {**loaded, **_load_words(files.config)}


def _load_model(part: str, folder: Path, dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    variant = find_weights(folder, f"{part} in {folder}")
    options: dict[str, Any] = {"variant": variant, "use_safetensors": True, "local_files_only": True}
    kinds: dict[str, Any] = {
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
    }
    options["dtype" if part.startswith("text") else "torch_dtype"] = dtype
    model, info = kinds[part].from_pretrained(folder, output_loading_info=True, **options)
    # Both libraries fill what is missing with random weights and only log it.
    _require_whole(f"{part} in {folder}", sorted(info["missing_keys"]))
    return model


def _require_whole(where: str, missing: list[str]) -> None:
    if missing:
        raise UserError(f"{where} lacks {len(missing)} weights, the first is {missing[0]}: copy or download it again")


def _load_words(folder: Path) -> dict[str, Any]:
    """Tokenizers and scheduler, which have no weights."""
    from transformers import CLIPTokenizer

    return {
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        "tokenizer_2": CLIPTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True),
        "scheduler": _load_scheduler(folder / "scheduler"),
    }


def _load_scheduler(folder: Path) -> Any:
    import diffusers

    name = str(read_json(folder / "scheduler_config.json").get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known:
        raise UserError(f"scheduler {name!r} in {folder} is not one of diffusers: SDXL's is EulerDiscreteScheduler")
    return kind.from_pretrained(folder, local_files_only=True)


def _load_file(files: BaseFiles, dtype: torch.dtype, vae_dtype: torch.dtype) -> dict[str, Any]:
    """A checkpoint in SGM names, through diffusers' own conversion."""
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline

    words = _load_words(files.config)
    header = read_header(files.path, f"base {files.id!r}")
    # Markers that v-prediction checkpoints carry instead of a config.
    if "v_pred" in header:
        changes: dict[str, Any] = {"prediction_type": "v_prediction"}
        if "ztsnr" in header:
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        words["scheduler"] = type(words["scheduler"]).from_config(words["scheduler"].config, **changes)
    local = {"config": str(files.config), "local_files_only": True}
    # Loaded on its own: through the pipeline's dtype it would be rounded on its way to fp32.
    vae = AutoencoderKL.from_single_file(str(files.path), subfolder="vae", torch_dtype=vae_dtype, **local)
    pipeline = StableDiffusionXLPipeline.from_single_file(str(files.path), torch_dtype=dtype, vae=vae, **words, **local)
    loaded = {**pipeline.components, **words, "vae": vae}
    for part in MODELS:
        # What the file does not hold stays on the meta device, without data.
        lacking = [name for name, weight in loaded[part].named_parameters() if weight.is_meta]
        _require_whole(f"{part} in {files.path}", lacking)
    return loaded
