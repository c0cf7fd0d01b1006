"""Values keep what was written: text settings their text, numbers are decimal, booleans are true and false alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_ray.config import yaml_loader
from sdxl_ray.config.experiment import load_experiment
from sdxl_ray.config.recipe import Recipe, load, override, parse, parse_assignments
from sdxl_ray.config.search_space import load_space
from sdxl_ray.config.validation import placeholder
from sdxl_ray.evaluation.prompts import load_prompts
from sdxl_ray.paths import local_path
from serve.app import read as read_arguments
from serve.config import load as load_served
from serve.loadtest.config import load_config
from tests.cases import cases
from tests.config.refused import refused
from tests.conftest import Here

pytestmark = pytest.mark.chaos

#: What YAML 1.1, or 1.2, would make another type of.
TEXTS = (
    *("2024_05", "007", "010", "+7", "-0", "0x1F", "0o17", "0b1", "1_000", "99999999999999999999999999"),
    *("1e5", "1.5", ".5", "5.", "1e400", ".inf", "-.INF", ".nan", "1:30", "12:30:45"),
    *("no", "yes", "on", "off", "y", "n", "true", "True", "TRUE", "false", "=", "<<"),
    *("2024-05-01", "2001-12-14T21:59:43Z"),
)


def setting(path: str, text: str) -> Any:
    """What a recipe makes of `path=text` on the command line."""
    here: Any = override(Recipe(), parse_assignments([f"{path}={text}"]))
    for key in path.split("."):
        here = getattr(here, key)
    return here


@pytest.mark.parametrize("text", [*TEXTS, "[sks]", "{sks}", "a, b", "null and void"])
def test_text_settings_keep_their_text_on_the_command_line(text: str) -> None:
    for path in ("data.subject", "data.class_name", "base.id"):
        assert setting(path, text) == text, path
    assert setting("data.images", text) == local_path(text)
    if not text.startswith("{"):  # a section
        assert override(Recipe(), parse_assignments([f"base={text}"])).base.id == text


@pytest.mark.parametrize("text", TEXTS)
def test_text_settings_keep_their_text_in_every_kind_of_file(tmp_path: Path, text: str) -> None:
    def file(plain: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(plain.replace("TEXT", text))
        return str(path)

    recipe = load(file("base: TEXT\ndata: {images: TEXT, subject: TEXT}\nevaluation: {prompts: [TEXT, a dog]}"))
    assert (recipe.base.id, recipe.data.images, recipe.data.subject) == (text, local_path(text), text)
    assert recipe.evaluation.prompts == (text, "a dog")
    arms = "arms: {lora: {recipe: tiny_lora, settings: {data.images: TEXT}}}"
    experiment = load_experiment(file(f"{arms}\ndescription: TEXT"))
    assert experiment.description == text
    assert experiment.arms["lora"].settings.keys() == {"data.images"}
    assert override(Recipe(), experiment.arms["lora"].settings).data.images == local_path(text)
    space = load_space(
        file(
            "recipe: tiny_lora\nbudget: {trials: 2}\nsettings: {data.subject: TEXT}\n"
            "parameters: {data.flip: {kind: choice, values: [True, false]}, "
            "optim.ema_decay: {kind: choice, values: [~, .5]}}"
        )
    )
    assert space.start({}).data.subject == text
    assert [one.values for one in space.parameters.values()] == [(True, False), (None, 0.5)]  # type: ignore[union-attr]  # choices
    served = load_served(file("base: TEXT\nvariants: {a: TEXT, b: {artifact: TEXT}}"))
    artifacts = [one.artifact for one in served.variants.values()]
    assert [served.base.id, *artifacts] == [text, local_path(text), local_path(text)]
    test = load_config(file("rates: 2\nsubject: TEXT\narms: {a: {model: TEXT}}"), {"prompts": text})
    assert (test.subject, test.prompts, test.arms["a"].model) == (text, text, (text,))
    assert load_prompts(file("final: ['a {subject}']\nclasses: [TEXT]\nsource: TEXT")).classes == (text,)


def test_keys_of_mappings_are_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("variants: {no: base, 007: base, 1e5: base, true: base, null: base}")
    assert list(load_served(str(path)).variants) == ["no", "007", "1e5", "true", "null"]


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("seed", "010", 10),
        ("seed", "08", 8),
        ("seed", "'010'", 10),
        ("seed", "0x1F", 31),
        ("optim.steps", "0100", 100),
        ("optim.steps", "+5", 5),
        ("optim.steps", "1e3", 1000),
        ("optim.lr", "1e-4", 1e-4),
        ("optim.lr", "1E-4", 1e-4),
        ("optim.lr", ".5", 0.5),
        ("parallel.zero_stage", "03", 3),
        ("parallel.workers", "02", (2, 2)),
        ("parallel.workers", "1,4", (1, 4)),
        ("data.limit", "null", None),
        ("data.limit", "~", None),
        ("data.images", "Null", None),
        ("data.flip", "true", True),
        ("data.flip", "True", True),
        ("resources.gpus_per_worker", "1", 1),
        ("tuning.text_encoders", "1", (1,)),
        ("tuning.text_encoders", "1,2", (1, 2)),
        ("tuning.text_encoders", "[]", ()),
        ("tuning.target_modules", "to_q,to_k", ("to_q", "to_k")),
        ("optim.betas", "0.9,0.99", (0.9, 0.99)),
        ("evaluation.prompts", "a dog, on the beach", ("a dog, on the beach",)),
        ("evaluation.prompts", "[no, null, 007]", ("no", "null", "007")),
    ],
)
def test_other_settings_get_what_is_meant(path: str, text: str, value: object) -> None:
    found = setting(path, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("optim.steps=1_000", "optim.steps = '1_000': should be a number, write 1000"),
        ("optim.lr=0,5", "optim.lr = '0,5': should be a number, write 0.5"),
        ("optim.steps=1:30", "optim.steps = '1:30': should be a number"),
        ("optim.steps=true", "optim.steps = True: should be a number"),
        ("optim.lr=nan", "optim.lr = 'nan': should be a number"),
        ("optim.betas=0.9", "optim.betas = 0.9: should be 2 values, as [a, b]"),
        ("tuning.text_encoders=true", "input should be 1 or 2"),
        ("resources.gpus_per_worker=true", "input should be 'auto', 0 or 1"),
        *((f"data.flip={text}", "should be true or false") for text in ("yes", "on", "1", "y", "no", "null")),
    ],
)
def test_what_is_not_meant_by_anybody_gets_one_line(word: str, line: str) -> None:
    assert line in refused(parse_assignments([word]))


def test_arguments_of_ray_serve_are_text_and_keep_it() -> None:
    """`serve run serve.app:build variants.x=007 limits.n=4` gives text, a file of Serve what YAML 1.1 has made."""
    config = read_arguments({"variants.dog": "007", "base.id": "1e5", "limits.n": "4", "limits.guidance_scale": "1e1"})
    assert (config.variants["dog"].artifact, config.base.id) == (local_path("007"), "1e5")
    assert (config.limits.n, config.limits.guidance_scale) == (4, 10.0)


@settings(max_examples=cases(100), deadline=None)
@given(st.sampled_from(TEXTS) | st.text(max_size=12).filter(lambda text: placeholder(text, None) is None))
def test_a_recipe_survives_being_written_and_read(text: str) -> None:
    recipe = override(Recipe(), {"data.subject": text, "data.prompt": text, "evaluation.prompts": [text]})
    plain = recipe.model_dump(mode="json")
    for again in (
        yaml_loader.load(yaml_loader.dump(plain)),
        yaml.safe_load(yaml_loader.dump(plain)),
        json.loads(json.dumps(plain)),
    ):
        assert parse(again) == recipe
        assert parse(again).identity == recipe.identity


def test_a_printed_recipe_is_a_recipe(here: Here, tmp_path: Path) -> None:
    code, printed, _ = here(
        "config", "lora", "data.subject=no", "data.images=2024_05", "data.class_name=1e5", "seed=010"
    )
    assert code == 0
    (tmp_path / "mine.yaml").write_text(printed)
    mine = load(str(tmp_path / "mine.yaml"))
    assert (mine.data.subject, mine.data.images, mine.data.class_name, mine.seed) == (
        *("no", str(tmp_path / "2024_05"), "1e5", 10),
    )
