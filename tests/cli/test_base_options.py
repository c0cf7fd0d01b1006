"""The base of `generate` and `evaluate`: its options, and errors that name them instead of a recipe's settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdxl_ray.__main__ import build
from sdxl_ray.cli.base_options import naming_options, read_base_options
from sdxl_ray.errors import UserError
from sdxl_ray.models.base_model_files import locate
from tests.models.single_file import write_single_file


def refused(*words: str) -> str:
    result = CliRunner().invoke(build(), words)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_the_options_describe_a_base(embedded: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    write_single_file(embedded, file)
    base = read_base_options(str(file), str(embedded), str(embedded / "vae"), "bf16")
    assert base is not None
    assert (base.config, base.vae, base.vae_precision) == (str(embedded), str(embedded / "vae"), "bf16")
    assert locate(base).config == embedded
    fixed = read_base_options("tiny", None, f"owner/name@{'a' * 40}", None)
    assert fixed is not None
    assert (fixed.vae, fixed.vae_revision) == ("owner/name", "a" * 40)
    assert read_base_options(None, None, None, None) is None
    with pytest.raises(UserError, match="--base-vae changes the base that --base names"):
        read_base_options(None, None, "folder", None)


def test_errors_name_options_of_the_command(embedded: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    write_single_file(embedded, file)
    said = refused("generate", "base", "a dog", "--base", str(file), "--out", str(tmp_path / "out"))
    assert "set --base-config FOLDER, a diffusers folder" in said
    said = refused("generate", "base", "a dog", "--base", "tiny", "--base-config", str(embedded))
    assert "base.config" not in said
    assert "--base-config" in said
    assert refused("generate", "base", "base.config=x") == "a prompt looks like a setting: give --base-config x"
    said = refused("evaluate", "base", "--base", str(file), "--subject", "subject:robot/held_out",
                   "--class-name", "robot", "--out", str(tmp_path / "scores"))  # fmt: skip
    assert "set --base-config FOLDER" in said


@pytest.mark.parametrize(
    ("setting", "option"),
    [
        ("give an SDXL, for example base=a/b base.revision=12ab", "give an SDXL, for example --base a/b@12ab"),
        ("base 'x/y' needs base.revision=COMMIT", "base 'x/y' needs --base NAME@COMMIT"),
        ("base.vae=m/fix with base.vae_revision=COMMIT", "--base-vae m/fix@COMMIT"),
        ("set base.vae_precision=fp32", "set --base-vae-precision fp32"),
        ("base.vae 'x' is damaged", "--base-vae 'x' is damaged"),
        ("give base=FOLDER (a local copy) or base=tiny", "give --base FOLDER (a local copy) or --base tiny"),
    ],
)  # fmt: skip
def test_settings_become_options(setting: str, option: str) -> None:
    with pytest.raises(UserError) as caught, naming_options():
        raise UserError(setting)
    assert str(caught.value) == option
