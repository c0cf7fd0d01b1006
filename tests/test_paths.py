"""Paths as users write them: relative ones, `~`, file URLs; and the names of runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from sdxl_ray.config.experiment import Experiment
from sdxl_ray.config.recipe import PATHS, Recipe, load, override, parse
from sdxl_ray.config.schema import Base, ImagesPath, LocalPath, PathOrName
from sdxl_ray.errors import UserError
from sdxl_ray.paths import local_path, path_or_name, required_name, working_directory
from serve.config import ServeConfig


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a working directory of one's own; the working directory is returned."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work" / "photos" / "dog").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_a_path_is_absolute_once_it_is_read(home: Path) -> None:
    for text, path in (
        ("photos/dog", home / "photos/dog"),
        ("./photos/../photos/dog/", home / "photos/dog"),
        ("~/dog", home.parent / "home/dog"),
        ("~", home.parent / "home"),
        (f"file://{home}/my%20dog", home / "my dog"),
        ("2024_05", home / "2024_05"),
    ):
        assert local_path(text) == str(path), text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "is empty"),
        ("s3://bucket/dog", "a URL of s3"),
        ("file://data/dog", "three slashes"),
        ("~nobody9/x", "no home"),
    ],
)
def test_what_is_no_path_here_is_refused(home: Path, text: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        override(Recipe(), {"data.images": text})


def test_a_name_stays_a_name_and_a_folder_becomes_absolute(home: Path) -> None:
    (home / "org" / "model").mkdir(parents=True)
    (home / "tiny").mkdir()
    assert path_or_name("org/other") == "org/other"
    assert Base(id="org/model").id == str(home / "org" / "model")
    assert Base(id="tiny").id == "tiny"
    assert Base(id="./tiny").id == str(home / "tiny")
    assert Base(id="~/sdxl.safetensors").id == str(home.parent / "home" / "sdxl.safetensors")


def test_every_path_setting_of_a_recipe_is_resolved(home: Path) -> None:
    """By the types of the fields, so that a new path setting cannot be forgotten in PATHS."""
    kinds = {id(get_args(kind)[1]) for kind in (LocalPath, ImagesPath, PathOrName)}

    def paths(model: type[BaseModel], above: str) -> set[str]:
        found = set()
        for name, field in model.model_fields.items():
            here = f"{above}.{name}" if above else name
            marks = [*field.metadata, *(mark for one in get_args(field.annotation) for mark in get_args(one)[1:])]
            if kinds & {id(mark) for mark in marks}:
                found.add(here)
            for inner in (field.annotation, *get_args(field.annotation)):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    found |= paths(inner, here)
        return found

    assert {"base.id", *paths(Recipe, "")} == set(PATHS)
    names = {path: f"{path}.safetensors" for path in PATHS}  # a single file as the base, or it has no config
    recipe = override(Recipe(), {path: f"./{name}" for path, name in names.items()})
    assert recipe.local_paths == {path: str(home / name) for path, name in names.items()}


def test_the_other_files_have_absolute_paths_too(home: Path) -> None:
    served = ServeConfig.model_validate({"variants": {"dog": "runs/dog/artifact"}, "api_keys": {"file": "~/keys"}})
    assert served.variants["dog"].artifact == str(home / "runs/dog/artifact")
    assert served.api_keys.file == str(home.parent / "home" / "keys")
    arms = {"a": {"recipe": "tiny_lora", "settings": {"data.images": "photos/dog"}}}
    experiment = Experiment.model_validate({"arms": arms, "other": "photos/other"})
    assert experiment.other == str(home / "photos/other")
    assert experiment.runs({})[0].recipe.data.images == str(home / "photos/dog")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("mlruns", "{here}/mlruns"),
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("databricks", "databricks"),
    ],
)
def test_where_mlflow_writes_does_not_depend_on_the_worker(home: Path, written: str, read: str) -> None:
    recipe = override(Recipe(), {"resources.mlflow": {"tracking_uri": written}})
    assert recipe.resources.mlflow is not None
    assert recipe.resources.mlflow.tracking_uri == read.format(here=home)


def test_where_a_folder_lies_does_not_decide_what_a_run_is(home: Path) -> None:
    """The package of a Ray job is unpacked somewhere else each time; the same command must find its run again."""
    here = override(load("tiny_lora"), {"data.images": "photos/dog", "tuning.init": "runs/a/artifact"})
    moved = override(load("tiny_lora"), {"data.images": "/elsewhere/dog", "tuning.init": "/other/runs/a/artifact"})
    assert here.identity == moved.identity
    for changes in ({"data.images": "photos/cat"}, {"tuning.init": "runs/b/artifact"}, {"base.id": "./base"}):
        assert override(here, changes).identity != here.identity


def test_a_recipe_is_read_the_same_in_another_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = override(load("tiny_lora"), {"data.images": "photos/dog", "base": "./mybase"})
    monkeypatch.chdir(os.sep)
    assert parse(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "", " ", "a/b", "a\\b", "v1.", ".hidden", "a:b", "cache", "what?", "x" * 200, " a"]
)
def test_a_name_that_is_no_folder_below_the_storage_is_refused(name: str) -> None:
    with pytest.raises(UserError):
        required_name(name)


@pytest.mark.parametrize("name", ["dog", "v1.2", "My dog", "größer", "a+b_c-d", "x" * 128])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert required_name(name) == name


def test_commands_refuse_such_a_name_at_once(here: object) -> None:
    for words in (("train", "tiny_lora", "data.images=subject:robot"), ("tune", "tiny_lora")):
        code, _, err = here(*words, "--name", "../../x")  # type: ignore[operator]
        assert code == 2 and "'../../x'" in err and "try 'x'" in err


def test_a_working_directory_that_was_made_again_is_still_known(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", str(home))
    home.rename(home.with_name("old"))
    assert working_directory() == str(home.with_name("old"))  # moved, and still there
    shutil.rmtree(home.with_name("old"))
    home.mkdir()
    assert working_directory() == str(home)
