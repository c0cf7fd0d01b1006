"""The settings references in `settings/`: one Markdown page per settings model, printed from the code."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from sdxl_ray.cli.settings_reference import SettingLine, reference
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.search_space import Space
from serve.config import ServeConfig
from serve.loadtest.config import LoadTest

FOLDER = Path(__file__).parent / "settings"
#: File name -> the model, its title, and how the settings are given.
PAGES: dict[str, tuple[type[BaseModel], str, str]] = {
    "recipe.md": (Recipe, "Recipe", "sdxl-ray train lora optim.steps=800"),
    "space.md": (Space, "Search space", "sdxl-ray tune tiny_lora budget.trials=8"),
    "serve.md": (ServeConfig, "Serve configuration", "sdxl-ray serve compare port=8080"),
    "loadtest.md": (LoadTest, "Load test", "sdxl-ray loadtest quick queries=64"),
}


def pages() -> dict[str, str]:
    """File name -> Markdown."""
    return {name: _page(*given) for name, given in PAGES.items()}


def _page(model: type[BaseModel], title: str, example: str) -> str:
    lines = [
        f"# {title}: every setting",
        "",
        "Printed from the code by `python -m sdxl_ray.docs`; edit the code, not this page.",
        "NAME is a key of your own; `[]` is an item of a list; `[kind X]` marks settings of one kind of a section.",
        "",
        f"    {example}",
    ]
    sections: dict[str, list[SettingLine]] = {"": []}
    for setting in reference(model):
        sections.setdefault(setting.path.partition(".")[0] if "." in setting.path else "", []).append(setting)
    for section, settings in sections.items():
        heading = [f"## {section}", ""] if section else []
        lines += ["", *heading, "| setting | values | default | meaning |", "| --- | --- | --- | --- |"]
        lines += map(_row, settings)
    return "\n".join(lines) + "\n"


def _row(setting: SettingLine) -> str:
    cells = (f"`{setting.path}`", setting.values, f"`{setting.default}`" if setting.default else "", setting.help)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
