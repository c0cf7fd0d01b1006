"""Makes artifacts of other tools' files: LoRAs of every spelling and whole models.

The caller chooses the folder; `models.opening` keeps imports in the cache. What a file is, is known by the names of its
tensors alone; pickles are never loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import Base, Data
from sdxl_ray.errors import UserError
from sdxl_ray.formats.families import SDXL, family_of
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.lora_files import read_lora
from sdxl_ray.formats.peft_metadata import PeftAlphas
from sdxl_ray.formats.tensor_keys import split
from sdxl_ray.io.artifact import LORA_WEIGHTS, Artifact
from sdxl_ray.io.file_hash import sha256
from sdxl_ray.io.safetensors_files import PICKLES, read_header, read_json, read_metadata
from sdxl_ray.models import model_kinds
from sdxl_ray.models.base_model import load_tokenizers
from sdxl_ray.models.base_model_files import component_configs, locate
from sdxl_ray.models.lora_artifact import textual_inversion_artifact, write_lora_artifact
from sdxl_ray.models.words import require_new_word

#: What decides an import of a folder.
FOLDER_FILES = ("*.json", "*.safetensors", "*/*.json", "*/*.safetensors", "*/*.txt")
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Kind = Literal["lora", "checkpoint", "folder", "words"]


def kind_of(path: Path) -> Kind:
    """What a file or folder is. Raises UserError for a pickle, a damaged file, and what is no model of SDXL."""
    if path.is_dir() and (path / "model_index.json").is_file():
        return "folder"
    file = weights_of(path)
    where = repr(str(path))
    if file.suffix in PICKLES:
        raise UserError(f"{where} is a pickle, which can run code when loaded: convert it to safetensors")
    header = read_header(file, where)
    if any(name.startswith(("model.diffusion_model.", "first_stage_model.", "conditioner.")) for name in header):
        return "checkpoint"
    if header.keys() & {"clip_l", "clip_g", "emb_params"}:
        return "words"
    if any(split(name) is not None for name in header):
        return "lora"
    raise UserError(f"{where} is not a LoRA or a model of SDXL but {model_kinds.of_header(header, set())}")


def weights_of(path: Path) -> Path:
    """The one weights file of a LoRA folder, or the file itself. Raises UserError for a folder with several."""
    if path.is_file():
        return path
    for name in (PEFT_WEIGHTS, LORA_WEIGHTS):
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"{str(path)!r} holds {len(files)} .safetensors files: give one of them, as {str(files[0])!r}")
    return files[0]


def base_of(path: Path, base: Base | None) -> Base:
    """`base`, else the one that the file itself names or is. Raises UserError when neither is known."""
    if base is not None:
        return base
    kind = kind_of(path)
    if kind in ("checkpoint", "folder"):
        return Base(id=str(path.absolute()))
    made_on = read_metadata(weights_of(path), repr(str(path))).get("ss_sd_model_name")
    if made_on == "tiny":
        return Base(id="tiny")
    what = "a textual inversion" if kind == "words" else "a LoRA"
    named = f"; it says it was made on {made_on!r}" if made_on else ""
    raise UserError(f"{str(path)!r} is {what} of another tool, and its base is not known{named}: give it with --base")


def import_model(
    path: Path,
    base: Base,
    folder: Path,
    *,
    word: str | None = None,
    allow_partial: bool = False,
    on_note: Callable[[str], None] = lambda text: None,
) -> Artifact:
    """Import `path`, a file or folder, as the artifact `folder`, whole or not at all.

    word: what prompts call a textual inversion; default, the name of its file.
    Raises UserError as `kind_of`, `read_adapter` and `locate` do, and for tensors that fit nowhere, unless
    `allow_partial` is set and some fit.
    """
    kind = kind_of(path)
    if word is not None and kind != "words":
        raise UserError(f"{str(path)!r} is no textual inversion, so it has no word: leave --word out")
    if kind == "lora":
        return _import_lora(path, base, folder, allow_partial, on_note)
    if kind == "words":
        return _import_words(path, base, folder, word or path.stem)
    return _import_model(path, base, folder)


def _import_lora(path: Path, base: Base, folder: Path, allow_partial: bool, on_note: Callable[[str], None]) -> Artifact:
    files, file, where = locate(base), weights_of(path), repr(str(path))
    family = family_of(read_header(file, where))
    if family not in (SDXL, None):
        raise UserError(
            f"{where} is a LoRA of {family}, and {base.id!r} is an SDXL: give a LoRA that was made for SDXL"
        )
    names = LayerNames.of(component_configs(files))
    config = file.parent / PEFT_CONFIG
    alphas = PeftAlphas(dict.fromkeys(("unet",), read_json(config))) if file.name == PEFT_WEIGHTS else None
    adapter, unused = read_lora(file, names, where, alphas)
    if unused:
        listed = ", ".join(sorted(unused)[:3]) + (", ..." if len(unused) > 3 else "")
        of = f"{len(unused)} of {len(read_header(file, where))} tensors"
        fits = f"{where}: {of} fit no layer of base {base.id!r} ({listed})"
        if not adapter.layers:
            raise UserError(f"{fits}: it was made for another model, give the base that it was made on with --base")
        if not allow_partial:
            fix = "give the base that it was made on, or use the rest with `sdxl-ray import --allow-partial`"
            raise UserError(f"{fits}: {fix}")
        on_note(f"note: {fits}; they are left out")
    origin = {"command": "import", "file": path.name, "sha256": sha256(file), "unused_tensors": len(unused)}
    return write_lora_artifact(folder, adapter, names, files, imported_recipe(base), origin=origin)


def _import_words(path: Path, base: Base, folder: Path, word: str) -> Artifact:
    files = locate(base)
    require_new_word(word, load_tokenizers(files), repr(str(path)))
    origin = {"command": "import", "file": path.name, "sha256": sha256(path)}
    return textual_inversion_artifact(folder, path, word, files, imported_recipe(base), origin=origin)


def _import_model(path: Path, base: Base, folder: Path) -> Artifact:
    """A whole model, in the precision that its UNet is stored in. base: what it is compared with, or itself."""
    from sdxl_ray.models.base_model import load_components
    from sdxl_ray.models.full_artifact import stored_dtype, write_full_artifact

    made_on = locate(base)
    itself = Base(id=str(path.absolute()), config=base.config or str(made_on.config))
    files = locate(itself)
    dtype = stored_dtype(files)
    components = load_components(files, itself, dtype=dtype, device="cpu")
    origin = {"command": "import", "file": path.name, "sha256": files.revision}
    components.files = made_on
    return write_full_artifact(
        folder,
        components,
        imported_recipe(base),
        ("unet", "text_encoder", "text_encoder_2"),
        origin=origin,
        dtype=dtype,
    )


def imported_recipe(base: Base) -> Recipe:
    """What is recorded of a model whose training is not known: the base, and how it is usually drawn and scored."""
    shipped = recipe_files.load("tiny_lora" if base.id == "tiny" else "lora")
    return shipped.model_copy(update={"base": base, "data": Data()})
