"""What starts fast stays fast: the package, help and planning load no framework."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = {"torch", "ray", "deepspeed", "diffusers", "transformers", "peft", "accelerate"}
#: Not needed to print help; pyarrow alone would double its time.
LATER = FRAMEWORKS | {"yaml", "pyarrow", "numpy", "matplotlib", "jinja2", "PIL", "rich.live"}


def loaded_by(code: str, folder: Path) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after `code`."""
    script = (
        "import sys\n"
        "try:\n"
        f"    exec({code!r})\n"
        "except SystemExit as done:\n"
        "    assert not done.code, done.code\n"
        "print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def command(*words: str) -> str:
    return f"sys.argv = {['sdxl-ray', *words]!r}; from sdxl_ray.__main__ import main; main()"


@pytest.mark.parametrize("words", [(), ("generate", "--help"), ("recipes", "--help"), ("--version",)])
def test_help_loads_nothing_heavy(words: tuple[str, ...], tmp_path: Path) -> None:
    code = command(*words) if words else command("--help")
    assert loaded_by(code, tmp_path) & LATER == set()


@pytest.mark.parametrize(
    "code",
    [
        "import sdxl_ray",
        "import sdxl_ray.config.recipe, sdxl_ray.io.artifact, sdxl_ray.io.records",
        "import sdxl_ray.display.progress, sdxl_ray.display.table",
        command("recipes", "lora"),
        command("config", "lora", "optim.lr=1e-5"),
        command("plan", "tiny_lora", "--gpu", "cpu"),
        command("plan", "lora", "--gpu", "h100", "--json"),
    ],
)
def test_words_load_no_framework(code: str, tmp_path: Path) -> None:
    loaded = loaded_by(code, tmp_path)
    assert "sdxl_ray" in loaded
    assert loaded & FRAMEWORKS == set()


def test_an_ingress_and_what_deploys_it_load_no_framework_but_ray(tmp_path: Path) -> None:
    assert loaded_by("import serve.app, serve.http.ingress", tmp_path) & FRAMEWORKS == {"ray"}


def test_the_probe_sees_a_framework(tmp_path: Path) -> None:
    assert "torch" in loaded_by("import torch", tmp_path)
