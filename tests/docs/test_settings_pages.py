"""The settings references are what the code prints."""

from __future__ import annotations

import pytest

from sdxl_ray.docs.settings_pages import FOLDER, PAGES, pages


def test_the_folder_holds_one_page_a_model() -> None:
    assert sorted(file.name for file in FOLDER.iterdir()) == sorted(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_prints(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == pages()[name], "run python -m sdxl_ray.docs"


def test_sections_below_a_key_of_the_user_are_followed() -> None:
    printed = pages()
    assert "`variants.NAME.artifact`" in printed["serve.md"]
    assert "`parameters.NAME.low [kind loguniform]`" in printed["space.md"]
    assert "`arms.NAME.adapters[].scale`" in printed["loadtest.md"]
