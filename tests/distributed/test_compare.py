"""Compare: arms under equal conditions, one table, one grid; a second call trains nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sdxl_ray.errors import UserError
from sdxl_ray.experiment import load_experiment, names
from tests.conftest import Cli

pytestmark = pytest.mark.slow

QUICK = (
    "parallel.engine=local",
    "parallel.workers=1",
    "optim.steps=3",
    "optim.warmup_steps=0",
    "checkpoint.every=3",
    "evaluation.every=0",
    "evaluation.num_inference_steps=2",
    "data.resolution=32",
)


def test_the_demo_lays_three_arms_side_by_side(cli: Cli, tmp_path: Path) -> None:
    prior = ("data.prior.count=4", "data.prior.num_inference_steps=2")
    experiment = tmp_path / "three.yaml"
    arms = {"lora": "tiny_lora", "dreambooth": "tiny_dreambooth", "dreambooth_lora": "tiny_dreambooth_lora"}
    settings = {f"data.prior.{k}": int(v) for k, v in (p.removeprefix("data.prior.").split("=") for p in prior)}
    experiment.write_text(
        json.dumps(
            {
                "extends": "demo",
                "prompts": "two.txt",
                "seeds": 2,
                "class_pictures": 2,
                "arms": {
                    arm: {"recipe": recipe, "settings": settings if "dreambooth" in arm else {}}
                    for arm, recipe in arms.items()
                },
            }
        )
    )
    (tmp_path / "two.txt").write_text("a photo of {a_subject}\na photo of {a_subject} in a forest\n")
    first = cli("compare", "three.yaml", *QUICK, "--json")
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    rows = told["arms"]
    assert [row["arm"] for row in rows] == list(arms)
    trainable = {row["arm"]: row["trainable"] for row in rows}
    assert trainable["dreambooth"] == 4_370_660  # every weight of the embedded base's UNet
    assert trainable["lora"] * 2 == trainable["dreambooth_lora"] < trainable["dreambooth"] / 20
    assert all(row["file_bytes"] > 0 and row["peak_bytes"] > 0 and row["loss_before"] for row in rows)
    with Image.open(tmp_path / "runs" / "three-comparison" / "grid.png") as picture:
        pixels = picture.convert("RGB").getcolors(2**24)
    assert pixels is not None
    assert len(pixels) > 100

    scored = {(row["model"], row["metric"]): row for row in told["scores"]}
    for model in ("base", *arms):
        for metric in ("dino_i", "clip_t", "pres", "div"):
            row = scored[model, metric]
            assert row["low"] <= row["value"] <= row["high"]
    assert ("real", "dino_i") in scored
    assert ("lora", "dino_i_gain") in scored
    report = Path(told["report"]).read_text()
    assert "<svg" in report
    assert "data:image/" in report
    assert json.loads((tmp_path / "runs" / "three-comparison" / "report.json").read_text())["arms"].keys() == set(arms)

    again = cli("compare", "three.yaml", *QUICK, "--json")
    assert json.loads(again.stdout)["arms"] == rows
    assert json.loads(again.stdout)["scores"][0]["value"] == told["scores"][0]["value"]
    assert "training" not in again.stderr


def test_shipped_experiments_hold_complete_recipes() -> None:
    assert names() == ["demo", "photos", "study"]
    for name in names():
        assert load_experiment(name).runs({})


def test_what_is_wrong_with_an_experiment_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no experiment named 'dmeo': did you mean 'demo'"):
        load_experiment("dmeo")
    (tmp_path / "empty.yaml").write_text("arms: {}")
    with pytest.raises(UserError, match="arms"):
        load_experiment(str(tmp_path / "empty.yaml"))
    (tmp_path / "typo.yaml").write_text("arms: {a: {recipe: lora, setings: {}}}")
    with pytest.raises(UserError, match="did you mean 'settings'"):
        load_experiment(str(tmp_path / "typo.yaml"))
    (tmp_path / "arm.yaml").write_text("arms: {a: {recipe: lroa}}")
    with pytest.raises(UserError, match="arm 'a': no recipe named 'lroa': did you mean 'lora'"):
        load_experiment(str(tmp_path / "arm.yaml")).runs({})
