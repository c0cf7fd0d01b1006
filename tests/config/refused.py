"""What every test of bad settings asks for."""

from __future__ import annotations

from typing import Any

import pytest

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.errors import UserError


def refused(changes: dict[str, Any], recipe: Recipe | None = None) -> str:
    """The one line that `changes` earn."""
    with pytest.raises(UserError) as caught:
        override(recipe or Recipe(), changes)
    line = str(caught.value)
    assert "\n" not in line
    assert "pydantic" not in line
    return line
