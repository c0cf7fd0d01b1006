"""Prompts to judge by: lists with a place for the subject, one a use, so that nothing is judged by what chose it.

prompts = load_prompts("tiny")
fill(prompts.of("final")[1], "sks robot")            # "a photo of sks robot on the beach"
fill(prompts.of("final")[1], "robot", article=True)  # "a photo of a robot on the beach"
"""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import combinations
from typing import Literal, get_args

from pydantic import Field, ValidationError, field_validator

from sdxl_ray.config import plain_data
from sdxl_ray.config.base_lineage import of_embedded_base
from sdxl_ray.config.schema import Section
from sdxl_ray.config.schema_errors import validated
from sdxl_ray.config.text_files import read_text
from sdxl_ray.errors import UserError
from sdxl_ray.paths import local_folder
from sdxl_ray.wording import article as article_of

#: What images are drawn for: choosing a checkpoint, a search, the result.
Split = Literal["validation", "tune", "final"]

_PLACES = ("{subject}", "{a_subject}")


class Prompts(Section):
    """The lists of one prompt file. Every prompt has `{subject}` or `{a_subject}` (an article before a plain class)."""

    source: str = Field("", description="where the prompts come from")
    classes: tuple[str, ...] = Field((), description="classes whose default this file is")
    class_prompts: tuple[str, ...] = Field(("a photo of {a_subject}",), min_length=1)
    final: tuple[str, ...] = Field(min_length=1)
    tune: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()

    @field_validator("class_prompts", "final", "tune", "validation")
    @classmethod
    def _have_a_place(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if not any(place in prompt for place in _PLACES):
                raise ValueError(f"prompt {prompt!r} has no place for the subject: write {{subject}} where it belongs")
        if len(set(prompts)) < len(prompts):
            raise ValueError("the same prompt twice: keep one")
        return prompts

    def of(self, split: Split) -> tuple[str, ...]:
        """The list of a split. Raises UserError when the file has none."""
        prompts: tuple[str, ...] = getattr(self, split)
        if not prompts:
            raise UserError(f"the prompt file has no list {split!r}: add one, different from the others")
        return prompts


def load_prompts(name_or_path: str) -> Prompts:
    """A shipped list by name, a .yaml file of lists, or a .txt file with one prompt a line (used for every split).

    Raises UserError, one line: not there, empty, a prompt without a place for the subject, or in two of a file's lists.
    """
    if name_or_path.endswith(".txt"):
        return _from_text(name_or_path)
    plain = plain_data.read(name_or_path, _folder(), "prompt list")
    prompts = validated(Prompts, plain, name_or_path)
    for one, two in combinations(get_args(Split), 2):
        for prompt in getattr(prompts, one):
            if prompt in getattr(prompts, two):
                raise UserError(f"{name_or_path}: prompt {prompt!r} is in {one} and in {two}: keep it in one of them")
    return prompts


def default_prompts(base_id: str, class_name: str) -> str:
    """The shipped list for a base and a class."""
    if of_embedded_base(base_id):
        return "tiny"
    return "dreambooth_live" if class_name in load_prompts("dreambooth_live").classes else "dreambooth_objects"


def names() -> list[str]:
    """Names of the lists shipped with the package."""
    return plain_data.shipped(_folder())


def fill(prompt: str, words: str, *, article: bool = False) -> str:
    """The prompt about `words`; `article`: they are a class, and `{a_subject}` puts "a" or "an" before it."""
    a = article_of(words)
    prompt = re.sub(r"\b([Aa]) \{subject\}", lambda match: match[1] + a[1:] + " {subject}", prompt)
    return prompt.replace("{a_subject}", f"{a} {words}" if article else words).replace("{subject}", words)


def _from_text(path: str) -> Prompts:
    lines = [line.strip() for line in read_text(local_folder(path), f"prompt list {path!r}").splitlines()]
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise UserError(f"prompt list {path!r} is empty: write one prompt a line, with {{subject}} in it")
    try:
        return Prompts(final=prompts, tune=prompts, validation=prompts)
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _folder() -> Traversable:
    return resources.files("sdxl_ray") / "recipes" / "prompts"
