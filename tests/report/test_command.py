"""`sdxl-ray report`: what it prints, and one line with exit code 2 for a folder that it cannot use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sdxl_ray.errors import UserError
from sdxl_ray.report.build import write_report
from tests.report.synthetic import change

pytestmark = pytest.mark.slow

Here = Callable[..., tuple[object, str, str]]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "no folder"),
        (lambda home: (home / "comparison.json").unlink(), "not a comparison"),
        (lambda home: (home / "comparison.json").write_text("{"), "cannot be read"),
        (lambda home: (home / "comparison.json").write_text("[]"), "comparison.json"),
        (lambda home: change(home, arms={}), "arms"),
        (lambda home: change(home, arms={"x": {"run": "../../etc"}}), "outside"),
        (lambda home: next((home / "records").glob("scores-*")).write_bytes(b"PAR1"), "cannot be read"),
        (lambda home: next((home.parent / "demo-lora/records").glob("steps-*")).write_bytes(b""), "cannot be read"),
        (lambda home: (home.parent / "demo-lora/summary.json").write_text("{"), "summary.json"),
        (lambda home: (home.parent / "demo-lora/artifact/manifest.json").write_text("{}"), "manifest.json"),
        (lambda home: (home.parent / "demo-lora/artifact/weights.safetensors").unlink(), "is damaged"),
        (lambda home: (home.parent / "demo-lora/pictures/train.parquet").write_bytes(b"x"), "train.parquet"),
    ],
)
def test_bad_folders_are_one_line(home: Path, here: Here, spoil: Callable[[Path], object], said: str) -> None:
    spoil(home)
    code, out, err = here("report", str(home))
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err
    with pytest.raises(UserError):
        write_report(home)


def test_a_run_is_not_a_comparison(home: Path, here: Here) -> None:
    (home.parent / "demo-lora" / "run.json").write_text("{}")
    code, _, err = here("report", str(home.parent / "demo-lora"))
    assert code == 2 and "a run, not a comparison" in err


def test_the_command_prints_paths_or_json(home: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    code, out, _ = here("report", str(home), "--open")
    assert code == 0 and opened == [(home / "report.html").as_uri()]
    assert all(str(home / f"report.{kind}") in out for kind in ("html", "md", "json"))
    code, out, _ = here("report", str(home), "--json")
    assert code == 0 and json.loads(out)["answer"]["winner"] == "dreambooth"
