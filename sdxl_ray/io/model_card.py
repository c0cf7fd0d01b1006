"""The model card of an artifact: `README.md` beside its weights, with the front matter that the Hugging Face hub reads.

It lies outside the manifest, so it may be edited, and it changes no hash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import LoraTuning
from sdxl_ray.io.artifact import CARD, CARD_IMAGE, Manifest
from sdxl_ray.metrics.quality import Measured

_LICENCES = {"tiny": "apache-2.0", "stabilityai/stable-diffusion-xl-base-1.0": "openrail++"}
_MEANINGS = {
    "quality": "subject learnt x prompt obeyed x class kept (higher is better)",
    "dino_i": "likeness to the held-out photos (higher)",
    "clip_i": "the same by CLIP (higher)",
    "clip_t": "prompt obeyed (higher)",
    "pres": "images of the plain class that look like the subject (lower)",
    "class_kid": "how far the plain class moved from the base's (lower)",
    "prior_loss": "loss on the base's own images of the class (lower)",
    "div": "variety of images of one prompt (higher)",
}


def write_card(
    folder: Path, manifest: Manifest, recipe: Recipe, scores: Mapping[str, Measured], image: bool = False
) -> None:
    """Write the card of the artifact in `folder`. scores: of the exported step; image: CARD_IMAGE lies beside it."""
    (folder / CARD).write_text(card(manifest, recipe, scores, image), encoding="utf-8")


def card(manifest: Manifest, recipe: Recipe, scores: Mapping[str, Measured], image: bool = False) -> str:
    """The card as Markdown."""
    prompt = recipe.data.instance_prompt
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(recipe), sort_keys=True, allow_unicode=True)}---",
        f"# {_title(recipe)}",
        f"![Sample images: prompts by training step]({CARD_IMAGE})" if image else "",
        f"**Trigger words:** `{recipe.data.subject}`, for example `{prompt}`." if recipe.data.subject else "",
        "## Use",
        "In this folder, with [diffusers](https://github.com/huggingface/diffusers) and PEFT:",
        f"```python\n{snippet(recipe)}```",
        'With sdxl-ray: `sdxl-ray generate FOLDER "PROMPT"`; `sdxl-ray serve compare --variant NAME=FOLDER` serves it.',
        "## Training" if manifest.origin is None else "## Origin",
        _table(("", ""), _facts(manifest, recipe)),
        _scores(manifest.step, recipe, scores),
        "Every setting is in `manifest.json`, with the SHA-256 of every file and the versions of the libraries.",
        _licence_note(recipe),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def snippet(recipe: Recipe) -> str:
    """Python that draws one image with the artifact in the working directory."""
    lora = isinstance(recipe.tuning, LoraTuning)
    source = '"."'
    if lora:
        here = _folder_or_id(recipe.base.id)
        source = "shipped.folder()" if recipe.base.id == "tiny" else f'"{here}"'
    revision = f', revision="{recipe.base.revision}"' if lora and recipe.base.revision else ""
    of_file = lora and recipe.base.id.endswith(".safetensors")
    load = "from_single_file" if of_file else "from_pretrained"
    prompt = recipe.data.instance_prompt or "a photo"
    lines = [
        "import torch",
        "from diffusers import StableDiffusionXLPipeline",
        "from sdxl_ray.tiny import shipped  # the embedded base" if source == "shipped.folder()" else None,
        "",
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        'dtype = torch.bfloat16 if device == "cuda" else torch.float32',
        f"pipe = StableDiffusionXLPipeline.{load}({source}{revision}, torch_dtype=dtype).to(device)",
        'pipe.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")' if lora else None,
        f"image = pipe({prompt!r}, generator=torch.Generator().manual_seed(0)).images[0]",
        'image.save("image.png")',
    ]
    return "".join(f"{line}\n" for line in lines if line is not None)


def _front_matter(recipe: Recipe) -> dict[str, Any]:
    lora = isinstance(recipe.tuning, LoraTuning)
    tags = ["text-to-image", "stable-diffusion-xl", "diffusers", "lora" if lora else "full-fine-tuning", "sdxl-ray"]
    if recipe.data.subject is not None:
        tags.append("dreambooth")
    matter: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": tags}
    if _is_hub_id(recipe.base.id):
        matter |= {"base_model": recipe.base.id, "base_model_relation": "adapter" if lora else "finetune"}
    if (licence := licence_of(recipe)) is not None:
        matter["license"] = licence
    if recipe.data.instance_prompt is not None:
        matter["instance_prompt"] = recipe.data.instance_prompt
    return matter


def licence_of(recipe: Recipe) -> str | None:
    """The base's licence: known by name, or what the model card in its folder says; None when it is unknown."""
    if recipe.base.id in _LICENCES:
        return _LICENCES[recipe.base.id]
    file = Path(recipe.base.id) / CARD
    if not Path(recipe.base.id).is_absolute() or not file.is_file():
        return None
    found = re.search(r"\A---\s.*?^license:\s*(\S+)", file.read_text(encoding="utf-8", errors="replace"), re.M | re.S)
    return found[1].strip("\"'") if found else None


def _is_hub_id(base: str) -> bool:
    return base.count("/") == 1 and not Path(base).is_absolute()


def _title(recipe: Recipe) -> str:
    kind = "LoRA" if isinstance(recipe.tuning, LoraTuning) else "full fine-tuning"
    return f"{recipe.data.subject or 'Stable Diffusion XL'} — {kind} of {_base_name(recipe)}"


def _base_name(recipe: Recipe) -> str:
    """The base without the folders of this machine."""
    if recipe.base.id == "tiny":
        return "the embedded base of sdxl-ray"
    return _folder_or_id(recipe.base.id)


def _folder_or_id(base: str) -> str:
    """A hub id, or a folder's name; every run's result is called "artifact", so its run is named too."""
    if _is_hub_id(base):
        return base
    path = Path(base)
    return f"{path.parent.name}/{path.name}" if path.name == "artifact" else path.name


def _facts(manifest: Manifest, recipe: Recipe) -> list[tuple[str, str]]:
    tuning, optim = recipe.tuning, recipe.optim
    rows = [("base", f"{_base_name(recipe)}, revision `{manifest.base.revision[:12]}`")]
    if isinstance(tuning, LoraTuning):
        layers = ", ".join(tuning.target_modules)
        rows.append(("adapters", f"rank {tuning.rank}, alpha {tuning.alpha or tuning.rank:g}, on {layers}"))
    else:
        rows.append(("weights", "every weight of the UNet"))
    if tuning.text_encoders:
        rows.append(("text encoders", f"trained: {', '.join(map(str, tuning.text_encoders))}"))
    if manifest.origin is not None:
        return [*rows, *_origin(manifest.origin), ("date", manifest.created)]
    rows.append(("steps", f"{manifest.step} of {optim.steps}, batch {optim.batch_size}"))
    rows.append(("optimizer", f"{optim.name}, rate {optim.lr:g}, {optim.lr_scheduler}"))
    if recipe.data.prior is not None:
        prior = recipe.data.prior
        weight = f"weight {prior.prior_loss_weight:g}"
        rows.append(("class images", f"{prior.num_class_images}, {weight}: `{recipe.data.class_prompt}`"))
    rows.append(("date", manifest.created))
    return rows


def _origin(origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    plain = [(name, value) for name, value in origin.items() if isinstance(value, str | int | float)]
    rows = [(name.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value)) for name, value in plain]
    sources = ", ".join(
        f"{one['name']} x {one['weight']:g} (`{one['hash'][:12]}`)" for one in origin.get("sources", ())
    )
    return [*rows, ("made of", sources)] if sources else rows


def _scores(step: int, recipe: Recipe, scores: Mapping[str, Measured]) -> str:
    if not scores:
        return ""
    rows = [(name, _value(*score), _MEANINGS.get(name, "")) for name, score in scores.items() if score[0] is not None]
    split = recipe.evaluation.split
    head = f"Scores during training, at step {step}, on the {split} prompts and the held-out photos (95 % intervals). "
    head += "They chose this step: `sdxl-ray evaluate` scores it on prompts that chose nothing."
    return f"## Scores\n\n{head}\n\n{_table(('score', 'value', 'meaning'), rows)}"


def _value(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _licence_note(recipe: Recipe) -> str:
    licence = licence_of(recipe)
    what = f"`{licence}`" if licence else "the licence of the base, which this card does not know"
    return f"The weights are derived from {_base_name(recipe)} and stand under {what}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
