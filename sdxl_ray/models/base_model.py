"""Bases: finds an SDXL, checks it and loads it into memory.

    files = locate(recipe.base)                                   # what and where; see basefiles.py
    parts = load_components(files, recipe.base, dtype=torch.float32, device=torch.device("cpu"))
    parts.pipeline()("a photo of a dog")

torch and diffusers are imported inside the functions that need them, so that a plan can use `locate` and
`component_configs` without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats.diffusers_folder import make_readable
from sdxl_ray.io.safetensors_files import find_weights, read_json, weight_files
from sdxl_ray.models.base_model_files import MODELS, BaseFiles, component_configs, locate, single_file_changes
from sdxl_ray.models.host_memory import release_freed
from sdxl_ray.models.quiet_libraries import quiet_libraries
from sdxl_ray.models.weight_loading import loading, require_finite

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

__all__ = ["BaseFiles", "Components", "component_configs", "load_components", "load_vae", "locate", "own_memory"]


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

    @property
    def native_resolution(self) -> int:
        """Pixels of a side that the UNet was made for."""
        doublings = len(self.vae.config.block_out_channels) - 1
        return int(self.unet.config.sample_size) << doublings

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

    def save(self, folder: Path, cast: Sequence[Any], dtype: torch.dtype) -> None:
        """Write a standalone diffusers folder, which older versions of the libraries read too.

        cast: the models that are written in `dtype`, the others as they are. Raises OSError.
        """
        with quiet_libraries(), _in_dtype(cast, dtype):
            self.pipeline().save_pretrained(folder, safe_serialization=True)
        make_readable(folder)


@contextmanager
def _in_dtype(modules: Sequence[Any], dtype: torch.dtype) -> Iterator[None]:
    """Inside, modules of another dtype are cast; diffusers' own `to` warns about every cast."""
    from torch import nn

    cast = [(module, module.dtype) for module in modules if module.dtype != dtype]
    try:
        for module, _ in cast:
            nn.Module.to(module, dtype)
        yield
    finally:
        for module, before in cast:
            nn.Module.to(module, before)


def own_memory(*models: Any) -> None:
    """Give every weight memory of its own, aligned as the allocator does it.

    A weight that is mapped from a file lies at any offset, and CPU kernels round differently there. So without this the
    same weights from another file draw another image in the last bit. What the copies leave free goes back to the
    system: of a full-size SDXL, glibc would keep 2.6 to 4.8 GiB of holes.
    """
    for model in models:
        for weight in model.parameters():
            weight.data = weight.data.clone()
    release_freed()


def load_components(files: BaseFiles, base: Base, *, dtype: torch.dtype, device: torch.device | str) -> Components:
    """Load the base. UNet and text encoders in `dtype`, the VAE in `base.vae_precision` (auto: fp32).

    The VAE keeps its `force_upcast` setting, which a saved copy needs again. Raises UserError when a file does not
    fit its config.
    """
    with _readable(files, ": its vae"):
        vae = _load_vae(files, _vae_dtype(base))
    with _readable(files):
        loaded = _load_file(files, dtype, vae) if files.kind == "file" else _load_folder(files, dtype)
        loaded |= {"vae": vae, **_load_words(files)}
    for name in MODELS:
        loaded[name].to(device).eval().requires_grad_(False)
        require_finite(loaded[name].named_parameters(), *_read_from(files, name))
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


def vae_fix(vae: Any) -> str:
    """What to set when the VAE gives NaN or infinity."""
    import torch

    if vae.dtype != torch.float32:
        return "set base.vae_precision=fp32"
    return "it computes in fp32 already, so set base.vae to another VAE, or base to another copy"


def load_vae(files: BaseFiles, base: Base, *, device: torch.device | str) -> AutoencoderKL:
    """The VAE alone, as `load_components` gives it: for processes that only encode images."""
    with _readable(files, ": its vae"):
        vae: AutoencoderKL = _load_vae(files, _vae_dtype(base)).to(device).eval().requires_grad_(False)
    require_finite(vae.named_parameters(), *_read_from(files, "vae"))
    return vae


def _read_from(files: BaseFiles, part: str) -> tuple[str, list[Path]]:
    """What a part is called in messages, and the files that it was read from."""
    if part == "vae" and files.vae is not None:
        return f"base.vae {str(files.vae)!r}", weight_files(files.vae)
    where = f"base {files.id!r}: its {part}"
    return where, [files.path] if files.kind == "file" else weight_files(files.path / part)


def _vae_dtype(base: Base) -> torch.dtype:
    from sdxl_ray.models.device import DTYPES

    return DTYPES["fp32" if base.vae_precision == "auto" else base.vae_precision]


@contextmanager
def _readable(files: BaseFiles, part: str = "") -> Iterator[None]:
    """Inside, no bars are drawn, and what a library cannot read is one line."""
    try:
        with loading(f"base {files.id!r}{part}"):
            yield
    except UserError as error:
        if not isinstance(error.__cause__, NotImplementedError):
            raise
        # torch's way of saying that a weight has no data: it was in the config, but not in the single file.
        raise UserError(
            f"base {files.id!r}{part} lacks weights that {files.config} names: the file is incomplete, "
            "or base.config belongs to another model"
        ) from None


def _load_folder(files: BaseFiles, dtype: torch.dtype) -> dict[str, Any]:
    return {name: _load_model(name, files.path / name, dtype) for name in ("unet", "text_encoder", "text_encoder_2")}


def _load_vae(files: BaseFiles, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL

    if files.vae is not None:
        return _load_model("vae", files.vae, dtype)
    if files.kind == "folder":
        return _load_model("vae", files.path / "vae", dtype)
    return AutoencoderKL.from_single_file(
        str(files.path), subfolder="vae", torch_dtype=dtype, config=str(files.config), local_files_only=True
    )


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
    # Shapes that differ are reported here: transformers' own error only says that something differs.
    model, info = kinds[part].from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=part.startswith("text"), **options
    )
    for name, stored, wanted in info.get("mismatched_keys", ()):
        raise UserError(
            f"{part} in {folder}: {name} has the shape {list(stored)} and config.json says {list(wanted)}: "
            "they belong to different models, or one is damaged: copy or download both again"
        )
    missing = sorted(info["missing_keys"])
    if missing:  # both libraries would continue with random weights and only log it
        raise UserError(f"{part} in {folder} lacks {len(missing)} weights, as {missing[0]}: copy or download it again")
    return model


def load_tokenizers(files: BaseFiles) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Both tokenizers alone, for processes that only count tokens. Raises UserError when one cannot be read."""
    with _readable(files):
        return _tokenizer(files, "tokenizer"), _tokenizer(files, "tokenizer_2")


def _tokenizer(files: BaseFiles, part: str) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(files.config / part, local_files_only=True)
    return tokenizer


def _load_words(files: BaseFiles) -> dict[str, Any]:
    """Tokenizers and scheduler, which have no weights."""
    return {
        **{part: _tokenizer(files, part) for part in ("tokenizer", "tokenizer_2")},
        "scheduler": _load_scheduler(files),
    }


def _load_scheduler(files: BaseFiles) -> Any:
    import diffusers

    folder = files.config / "scheduler"
    name = str(read_json(folder / "scheduler_config.json").get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known:
        raise UserError(f"scheduler {name!r} in {folder} is not one of diffusers: SDXL's is EulerDiscreteScheduler")
    return kind.from_config({**kind.load_config(folder, local_files_only=True), **single_file_changes(files)})


def _load_file(files: BaseFiles, dtype: torch.dtype, vae: AutoencoderKL) -> dict[str, Any]:
    """UNet and text encoders of a checkpoint in SGM names, through diffusers' own conversion.

    The VAE comes loaded: read with the others it would be rounded to their dtype on its way to fp32.
    """
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(files.path),
        torch_dtype=dtype,
        vae=vae,
        config=str(files.config),
        local_files_only=True,
        **_load_words(files),
    )
    return dict(pipeline.components)
