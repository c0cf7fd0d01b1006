"""A command that is printed can be copied into a shell as it is."""

from __future__ import annotations

import subprocess

import pytest

from sdxl_ray.cli.arguments import command


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "my runs/dog/artifact", "a photo of sks dog"),
        ("generate", "runs/dog/artifact", 'a $HOME `id` "dog" it\'s; !'),
        ("train", "runs/a\\b/best.yaml"),
        ("generate", "runs/café", ""),
    ],
)
def test_a_shell_reads_back_the_words(words: tuple[str, ...]) -> None:
    script = f"sdxl-ray() {{ printf '%s\\n' \"$@\"; }}; {command(*words)}"
    read = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert read == "".join(f"{word}\n" for word in words)
