"""What a run cuts off its captions and prompts, as notes before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.models.base_model import load_tokenizers
from sdxl_ray.models.base_model_files import BaseFiles
from sdxl_ray.models.truncation import prompt_notes, truncations
from sdxl_ray.training.samples import sample_prompts


def training_notes(recipe: Recipe, files: BaseFiles, captions: Sequence[str]) -> list[str]:
    """What a run will not use of its captions (one for each image), and of the prompts that it draws with."""
    tokenizers, length = load_tokenizers(files), recipe.data.max_token_length
    setting, notes = "data.max_token_length=", []
    cuts = truncations(tokenizers, captions, length)
    if cuts:
        longest = max(cuts.values(), key=lambda cut: cut.tokens)
        count = sum(caption in cuts for caption in captions)
        notes.append(
            f"{count} of {len(captions)} captions {'is' if count == 1 else 'are'} longer than the {longest.used} "
            f"tokens that are used; the longest has {longest.tokens}; cut off: {longest.shown}; {longest.fix(setting)}"
        )
    prompts = [("a sample prompt", prompt) for prompt in sample_prompts(recipe, [])]
    if recipe.data.prior is not None:
        prompts.append(("the class prompt", recipe.data.class_prompt))
    unseen = [(name, prompt) for name, prompt in prompts if prompt not in cuts]
    return notes + prompt_notes(tokenizers, unseen, length, setting)
