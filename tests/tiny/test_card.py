"""The card says what was measured of the very weights that are shipped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sdxl_ray.tiny import shipped
from sdxl_ray.tiny._build.card import page
from sdxl_ray.tiny._build.catalog import CLASSES, FURTHER_SETS, SETS, SUBJECTS


@pytest.fixture(scope="module")
def scores() -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((shipped.ROOT / "scores.json").read_text())
    return plain


def test_the_card_is_made_from_the_scores(scores: dict[str, Any]) -> None:
    text = (shipped.ROOT / "CARD.md").read_text()
    assert text == page.card(scores)
    for name in (*CLASSES, *SUBJECTS, *(entry.package for entry in (SETS | FURTHER_SETS).values())):
        assert name in text
    assert scores["revision"][:16] in text


def test_the_scores_are_those_of_the_shipped_weights(scores: dict[str, Any]) -> None:
    assert scores["revision"] == shipped.index_revision()
