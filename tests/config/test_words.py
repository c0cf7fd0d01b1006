"""Settings as words of a command line: `optim.lr=1e-4`."""

from __future__ import annotations

import pytest

from sdxl_ray.config.recipe import parse_assignments
from sdxl_ray.errors import UserError


def test_assignments_are_yaml_values() -> None:
    words = ["a=1e-4", "b=true", "c=null", "d=[1, 2]", "e=a photo of sks dog", "f=", "g=x=y", "h={k: 2}", "i=: {"]
    assert parse_assignments(words) == {
        "a": 1e-4,
        "b": True,
        "c": None,
        "d": [1, 2],
        "e": "a photo of sks dog",
        "f": None,
        "g": "x=y",
        "h": {"k": 2},
        "i": ": {",
    }
    for word in ("optim.lr", "=3", ""):
        with pytest.raises(UserError, match="path=value"):
            parse_assignments([word])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a photo of sks dog # outside", "a photo of sks dog # outside"),
        ("dog: a photo", "dog: a photo"),
        ("2024-13-45", "2024-13-45"),
        ("0x_", "0x_"),
        ("[0x_]", ["0x_"]),
        ('["a dog", b #c]', '["a dog", b #c]'),
        ('["1e-4", 1e-4, 1E3, "a # b"]', ["1e-4", 1e-4, 1e3, "a # b"]),
        ("'2024'", "2024"),
        ("2024", 2024),
    ],
)
def test_the_command_line_means_what_it_says(text: str, value: object) -> None:
    assert parse_assignments([f"data.prompt={text}"]) == {"data.prompt": value}
