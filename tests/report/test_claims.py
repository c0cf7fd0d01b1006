"""The claims: arithmetic agrees with the published counts of SDXL, and verdicts follow what was measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sdxl_ray.io.records import Recorder, read
from sdxl_ray.report.arithmetic import Sdxl
from sdxl_ray.report.metrics import Absent
from sdxl_ray.report.sections.choice import choices
from sdxl_ray.report.sections.claims import Claim, claims
from tests.report.synthetic import facts_of, make, rescore

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sdxl() -> Sdxl:
    return Sdxl()


def by_name(home: Path, sdxl: Sdxl) -> dict[str, Claim]:
    return {claim.claim: claim for claim in claims(facts_of(home), sdxl)}


def test_arithmetic_of_sdxl(sdxl: Sdxl) -> None:
    assert sdxl.unet == 2_567_463_684
    assert [round(sdxl.unet / sdxl.trained(rank)) for rank in (1, 4, 16, 64)] == [1769, 442, 111, 28]
    assert sdxl.file_bytes(1) / 1e6 == pytest.approx(2.9, abs=0.25)
    assert sdxl.file_bytes(4) / 1e6 == pytest.approx(11.6, abs=0.25)
    assert sdxl.unet_bytes / 1e9 == pytest.approx(5.135, abs=0.001)
    assert sdxl.pipeline_bytes / 1e9 == pytest.approx(6.94, abs=0.01)
    assert sdxl.arithmetic_ratio() == pytest.approx(1.43, abs=0.01)
    assert sdxl.nearest_to(10_000)[0] == "to_q"
    assert len(sdxl.memory()) == 12


def test_every_claim_is_there_with_a_verdict(home: Path, sdxl: Sdxl) -> None:
    found = by_name(home, sdxl)
    assert len(found) == 8
    assert all(
        "arXiv" in claim.origin or "github.com" in claim.origin or "guides" in claim.origin for claim in found.values()
    )
    assert found["10,000 times fewer trainable parameters"].verdict == "does not hold"
    assert "lora 120x" in str(found["10,000 times fewer trainable parameters"].measured)
    assert found["3 to 5 photos suffice"].verdict == "holds"
    assert found["LoRA trains faster"].verdict == "holds"
    assert found["DreamBooth forgets"].verdict == "holds in part"
    assert isinstance(found["High quality in fewer steps, in real time"].measured, Absent)


def test_verdicts_follow_the_records(home: Path, sdxl: Sdxl) -> None:
    for arm in ("lora", "dreambooth", "dreambooth_lora"):
        rescore(home, arm, "dino_i_gain", 0.001, 0.02)
    for metric, value in {"pres": 0.3, "class_kid": 0.0, "prior_loss": 0.141, "div": 0.42}.items():
        rescore(home, "dreambooth", metric, value, 0.002)
    found = by_name(home, sdxl)
    assert found["3 to 5 photos suffice"].verdict == "does not hold"
    assert found["DreamBooth forgets"].verdict == "does not hold"


def test_without_runs_only_arithmetic_is_left(home: Path, sdxl: Sdxl) -> None:
    for arm in ("lora", "dreambooth", "dreambooth_lora"):
        shutil.rmtree(home.parent / f"demo-{arm}")
    found = by_name(home, sdxl)
    assert isinstance(found["3 times less GPU memory"].measured, Absent)
    assert found["3 to 5 photos suffice"].verdict == "open"


def test_which_to_choose_answers_every_question(home: Path) -> None:
    rows = list(choices(facts_of(home)))
    asked = ("Efficiency", "Training time", "Resources: memory", "Compatibility", "Forgetting", "Personalisation",
             "Complexity", "Power", "Customisation", "Image quality")  # fmt: skip
    assert set(asked) <= {row.question for row in rows}
    found = {row.measure if row.question == "Forgetting" else row.question: row for row in rows}
    assert found["Efficiency"].better == "LoRA" and found["Efficiency"].figures["DreamBooth"] == "11,201,924"
    assert found["Personalisation"].better == "DreamBooth"
    assert found["Variety"].better == "neither"  # 0.37 and 0.33 lie within their intervals
    quality = [row.measure for row in rows if row.question == "Image quality"]
    assert [words.partition(":")[0] for words in quality] == ["Subject fidelity (DINO-I)", "Prompt fidelity (CLIP-T)"]
    assert found["Compatibility"].better == "LoRA"
    assert found["Compatibility"].figures["DreamBooth"] == "2.1 MiB, a whole model, needs no base"


def test_compatibility_speaks_for_the_smaller_artifact(home: Path) -> None:
    full = home.parent / "demo-dreambooth" / "artifact" / "weights.safetensors"
    full.write_bytes((home.parent / "demo-lora" / "artifact" / "weights.safetensors").read_bytes())
    (row,) = (row for row in choices(facts_of(home)) if row.question == "Compatibility")
    assert row.better == "neither"


def test_a_speed_that_is_even_is_not_faster(home: Path, sdxl: Sdxl) -> None:
    steps = read(home.parent / "demo-lora" / "records", "steps").to_pylist()
    with Recorder(home.parent / "demo-dreambooth" / "records") as recorder:
        for row in steps:
            recorder.write("steps", {**row, "samples_per_s": row["samples_per_s"] / 1.05})
    claim = by_name(home, sdxl)["LoRA trains faster"]
    assert claim.verdict == "does not hold"
    assert "1.05 times" in str(claim.measured) and "is even" in str(claim.measured)


def test_a_method_that_was_not_trained_is_not_invented(tmp_path: Path, sdxl: Sdxl) -> None:
    home = make(tmp_path, arms=("lora",))
    rows = list(choices(facts_of(home)))
    assert all("DreamBooth" not in row.figures for row in rows)
    assert isinstance(rows[0].better, Absent)
    assert isinstance(by_name(home, sdxl)["LoRA trains faster"].measured, Absent)
