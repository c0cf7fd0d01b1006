"""Every command, setting, YAML example and link in the pages exists: read by the real parsers, nothing is run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sdxl_ray.__main__ import build
from sdxl_ray.cli.arguments import read_recipe
from sdxl_ray.config.experiment import Experiment, load_experiment
from sdxl_ray.config.recipe import Recipe, names, override, parse, parse_assignments
from sdxl_ray.config.search_space import Space, divide, load_space
from serve import config as serving
from serve.loadtest import config as load_tests
from tests.docs.markdown_blocks import PAGES, ROOT, blocks, commands

APP: Any = typer.main.get_command(build())
COMMANDS = commands()


def _recipe(given: dict[str, Any]) -> None:
    """A page may name a recipe file of the reader's own: its settings are checked on the nearest shipped recipe."""
    name, words = given.get("recipe") or given.get("name"), given.get("settings") or []
    if name is not None:
        read_recipe(name if name in names() else "lora", words)


def _space(given: dict[str, Any]) -> None:
    if given["space"] is not None:
        mine, changes = divide(parse_assignments(given["settings"] or []))
        load_space(given["space"] if (ROOT / given["space"]).is_file() else _shipped_space(given["space"]), mine)
        override(Recipe(), changes)


def _shipped_space(name: str) -> str:
    return "tiny_lora" if name.endswith(".yaml") else name


def _serve(given: dict[str, Any]) -> None:
    serving.override(serving.load("compare"), parse_assignments(given["settings"] or []))


def _load(given: dict[str, Any]) -> None:
    load_tests.load_config("quick", parse_assignments(given["settings"] or []))


def _experiment(given: dict[str, Any]) -> None:
    name = given["experiment"]
    load_experiment("demo" if name.endswith(".yaml") else name)  # its runs are many recipes: one is enough here
    override(Recipe(), parse_assignments(given["settings"] or []))


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "train": _recipe, "plan": _recipe, "config": _recipe, "tune": _space, "serve": _serve, "loadtest": _load,
    "compare": _experiment,
}  # fmt: skip


def test_the_pages_show_every_command() -> None:
    assert {words[0] for _, words in COMMANDS if words} >= set(APP.commands)


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=[f"{where} {' '.join(w)}" for where, w in COMMANDS])
def test_a_command_is_one_that_the_code_takes(where: str, words: list[str]) -> None:
    name, *rest = words
    command = APP.commands[name]
    if "--help" in rest:
        return
    with command.make_context(name, rest) as context:  # parses and converts as the command line does; runs nothing
        check = CHECKS.get(name)
        if check is not None:
            check(context.params)


READERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "recipe": parse,
    "space": Space.model_validate,
    "experiment": lambda plain: Experiment.model_validate(plain).runs({}),
    "serve": serving.parse,
    "loadtest": lambda plain: load_tests.parse(plain, "loadtest"),
}
YAML = [block for block in blocks() if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML, ids=[block.where for block in YAML])
def test_a_yaml_example_is_read(block: Any) -> None:
    """Its first line says what it is: `# recipe: ...`, `# space: ...` and so on (`READERS`)."""
    kind = block.text.lstrip("# ").partition(":")[0]
    assert kind in READERS, f"{block.where}: the first line must be a comment, {' or '.join(READERS)}"
    plain = yaml.safe_load(block.text)
    plain.pop("extends", None)
    READERS[kind](plain)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_link_leads_to_a_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [t for t in targets if "://" not in t and not t.startswith("mailto:") and not (page.parent / t).exists()]
    assert missing == []


def test_the_pages_name_no_setting_that_is_gone() -> None:
    """Settings in running text, as `optim.lr`: a section of a settings model, a dot, a name."""
    from sdxl_ray.cli.settings_reference import reference
    from sdxl_ray.docs.settings_pages import PAGES as SETTINGS

    known = {
        re.sub(r"\.NAME|\[\]| \[kind .*", "", line.path) for given in SETTINGS.values() for line in reference(given[0])
    }
    sections = {path.partition(".")[0] for path in known if "." in path} - {
        "images",
        "queue",
        "base",
        "variants",
        "arms",
    }
    known |= {".".join(path.split(".")[:n]) for path in known for n in (1, 2, 3)}
    wrong = []
    for page in PAGES:
        for path in re.findall(r"`([a-z_]+\.[a-z_]+(?:\.[a-z_]+)?)(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
            if path.partition(".")[0] in sections and path not in known and not (ROOT / path).exists():
                wrong.append(f"{page.name}: {path}")
    assert wrong == []
