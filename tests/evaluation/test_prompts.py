"""Prompt lists: shipped ones are whole and disjoint, and others are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdxl_ray.config.schema import Data
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.prompts import Prompts, default_prompts, fill, load_prompts, names
from sdxl_ray.tiny._build.catalog import CLASSES
from sdxl_ray.tiny.unknown_words import unknown_words


@pytest.mark.parametrize("name", names())
def test_no_prompt_of_a_shipped_list_serves_two_ends(name: str) -> None:
    prompts = load_prompts(name)
    assert prompts.source
    every = [*prompts.final, *prompts.tune, *prompts.validation]
    assert len(set(every)) == len(every)
    assert min(len(prompts.of(split)) for split in ("final", "tune", "validation")) >= 4  # type: ignore[arg-type]


def test_the_lists_of_dreambooth_have_their_25_prompts() -> None:
    objects, live = load_prompts("dreambooth_objects"), load_prompts("dreambooth_live")
    assert (len(objects.final), len(live.final)) == (25, 25)
    assert fill(objects.final[0], "sks teapot") == "a sks teapot in the jungle"
    assert len(set(objects.final) & set(live.final)) == 15
    assert "a {subject} in a purple wizard outfit" in live.final


def test_the_embedded_base_knows_every_word_of_its_list() -> None:
    prompts = load_prompts("tiny")
    every = [*prompts.final, *prompts.tune, *prompts.validation, *prompts.class_prompts]
    for class_name in CLASSES:
        assert unknown_words(fill(prompt, class_name, article=True) for prompt in every) == []


def test_a_prompt_in_two_lists_of_a_file_is_refused(tmp_path: Path) -> None:
    lists = tmp_path / "mine.yaml"
    lists.write_text("final: ['a {subject}', 'a red {subject}']\nvalidation: ['a red {subject}']\n")
    with pytest.raises(UserError, match=r"prompt 'a red {subject}' is in validation and in final: keep it in one"):
        load_prompts(str(lists))


@pytest.mark.parametrize(
    ("prompt", "words", "article", "filled"),
    [
        ("a photo of {a_subject} in the snow", "sks robot", False, "a photo of sks robot in the snow"),
        ("a photo of {a_subject} in the snow", "robot", True, "a photo of a robot in the snow"),
        ("a photo of {a_subject}", "elephant", True, "a photo of an elephant"),
        ("a photo of {a_subject}", "umbrella", True, "a photo of an umbrella"),
        ("a {subject} on the beach", "apple", True, "an apple on the beach"),
        ("A {subject} on the beach", "apple", True, "An apple on the beach"),
        ("a red {subject}", "apple", True, "a red apple"),
        ("a {subject}", "sks apple", False, "a sks apple"),
    ],
)
def test_filling(prompt: str, words: str, article: bool, filled: str) -> None:
    assert fill(prompt, words, article=article) == filled


def test_the_default_list_follows_base_and_class() -> None:
    assert default_prompts("tiny", "dog") == "tiny"
    assert default_prompts("org/sdxl", "dog") == "dreambooth_live"
    assert default_prompts("org/sdxl", "teapot") == "dreambooth_objects"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("empty.txt", "# nothing\n\n", "is empty"),
        ("plain.txt", "a photo of a dog\n", "has no place for the subject"),
        ("twice.txt", "a {subject}\na {subject}\n", "twice"),
        ("empty.yaml", "", "final"),
        ("none.yaml", "final: []\n", "final"),
        ("typo.yaml", "finale: ['a {subject}']\n", "final"),
    ],
)
def test_lists_that_cannot_be_used(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_prompts(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_own_lists(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# mine\na {subject} on Mars\n\n{a_subject} in a box\n")
    prompts = load_prompts(str(tmp_path / "mine.txt"))
    assert prompts.of("final") == prompts.of("tune") == ("a {subject} on Mars", "{a_subject} in a box")
    (tmp_path / "mine.yaml").write_text("final: ['a {subject} on Mars']\n")
    with pytest.raises(UserError, match="no list 'tune'"):
        load_prompts(str(tmp_path / "mine.yaml")).of("tune")
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        load_prompts("tinny")
    with pytest.raises(UserError, match="cannot be read"):
        load_prompts("nowhere.txt")


@pytest.mark.parametrize("class_name", ["elephant", "dog", "umbrella", "unicorn"])
def test_class_images_are_made_by_the_prompt_that_scores_them(class_name: str) -> None:
    data = Data.model_validate({"class_name": class_name, "prior": {}})
    assert data.class_prompt == fill(Prompts.model_fields["class_prompts"].default[0], class_name, article=True)
