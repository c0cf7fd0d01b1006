"""An artifact from an adapter that no run trained: an imported file, an extraction, a merge.

Its recorded recipe says what can be known: the base, the ranks, and, where the caller knows them, the subject's words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import LoraTuning
from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Adapter, Layer, LowRank
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.lora_files import read_lora, write_lora
from sdxl_ray.formats.metadata import lora_metadata
from sdxl_ray.formats.textual_inversion import read_vectors, require_word
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, Artifact, write_manifest
from sdxl_ray.io.atomic import whole_folder
from sdxl_ray.io.model_card import write_card
from sdxl_ray.models.base_model_files import BaseFiles, component_configs
from sdxl_ray.models.words import artifact_words


def write_lora_artifact(
    folder: Path,
    adapter: Adapter,
    names: LayerNames,
    files: BaseFiles,
    recipe: Recipe,
    *,
    origin: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> Artifact:
    """Write `folder` as a whole or not at all.

    recipe: of the base (`base`) and, if known, of the subject (`data`); its tuning is replaced by the adapter's.
    origin: as in `Manifest`, "command" first. dtype None: as the tensors are. Raises OSError.
    """
    recorded = recipe.model_copy(update={"tuning": tuning_of(adapter)})
    with whole_folder(folder) as draft:
        write_lora(adapter, names, draft, lora_metadata(adapter, recorded), dtype)
        artifact = write_manifest(
            draft,
            kind="lora",
            recipe=recorded.model_dump(mode="json"),
            recipe_identity=recorded.identity,
            base_id=files.id,
            base_revision=files.revision,
            step=0,
            origin=origin,
        )
        write_card(draft, artifact.manifest, recorded, {})
    return Artifact(folder, artifact.manifest)


def read_lora_artifact(artifact: Artifact, names: LayerNames) -> Adapter:
    """The adapter of a LoRA artifact, from the file that holds all of it.

    Raises UserError as `read_lora` does, for an artifact without weights, and for weights that fit no layer.
    """
    where = f"artifact {str(artifact.folder)!r}"
    file = next((f for f in (LORA_WEIGHTS, KOHYA_WEIGHTS) if (artifact.folder / f).is_file()), None)
    words = artifact_words(artifact, names.text_widths)
    if file is None:
        if not words:
            raise UserError(f"{where} holds no {LORA_WEIGHTS}")
        return Adapter({}, words=words)
    adapter, unused = read_lora(artifact.folder / file, names, where)
    if unused:
        raise UserError(f"{where}: {len(unused)} tensors fit no layer of the base, as {unused[0]}: give its own base")
    return replace(adapter, words=words)


def textual_inversion_artifact(
    folder: Path, file: Path, word: str, files: BaseFiles, recipe: Recipe, *, origin: Mapping[str, Any]
) -> Artifact:
    """An artifact without layers that lets prompts say `word`, with the vectors of a textual inversion's file.

    recipe, origin: as in `write_lora_artifact`; the recorded subject is the word.
    Raises UserError for a file that does not fit the base's text encoders, or a word that is none; OSError.
    """
    where, configs = repr(str(file)), component_configs(files)
    require_word(word, where)
    widths = configs["text_encoder"]["hidden_size"], configs["text_encoder_2"]["hidden_size"]
    adapter = Adapter({}, words={word: read_vectors(file, widths, where)})
    data = recipe.data.model_copy(update={"subject": word})
    recorded = recipe.model_copy(update={"data": data})
    return write_lora_artifact(folder, adapter, LayerNames.of(configs), files, recorded, origin=origin)


def tuning_of(adapter: Adapter) -> LoraTuning:
    """The settings that would give the adapter's layers, ranks and strengths."""
    pairs = adapter.low_rank
    if not pairs:
        return LoraTuning(rank=1)
    rank = Counter(pair.rank for pair in pairs.values()).most_common(1)[0][0]
    alpha = Counter(pair.alpha for pair in pairs.values()).most_common(1)[0][0]
    return LoraTuning(
        rank=rank,
        alpha=alpha,
        target_modules=_tails(pairs, "unet") or LoraTuning().target_modules,
        text_target_modules=_tails(pairs, "text_encoder", "text_encoder_2") or LoraTuning().text_target_modules,
        text_encoders=tuple(n for n, part in ((1, "text_encoder"), (2, "text_encoder_2")) if part in adapter.parts),
        use_dora=any(pair.magnitude is not None for pair in pairs.values()),
        rank_pattern={layer.module: pair.rank for layer, pair in pairs.items() if pair.rank != rank},
        alpha_pattern={layer.module: pair.alpha for layer, pair in pairs.items() if pair.alpha != alpha},
    )


def _tails(pairs: Mapping[Layer, LowRank], *parts: str) -> tuple[str, ...]:
    """Layers by the ends of their names, as `tuning.target_modules` has them: "to_q", "ff.net.2"."""
    names = {layer.module for layer in pairs if layer.part in parts}
    return tuple(
        sorted(
            {
                re.sub(r"^.*(transformer_blocks|resnets|attentions|layers|self_attn|attn\d|mlp)\.(\d+\.)?", "", n)
                for n in names
            }
        )
    )
