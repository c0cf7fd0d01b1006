"""A search's report: from records alone, with what holds on the final split first, and nothing invented."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdxl_ray.config.search_parameters import Choice, Int, LogUniform
from sdxl_ray.config.search_space import load_space
from sdxl_ray.io.records import Recorder
from sdxl_ray.io.search_records import FinalVerdict, SearchCard, Trial, TrialScores, write_trial
from sdxl_ray.report.build import write_report
from sdxl_ray.report.search_facts import ends, height, open_search
from tests.conftest import Here
from tests.report.synthetic import text_of
from tests.test_imports import FRAMEWORKS, command, loaded_by

pytestmark = pytest.mark.slow

GAIN = {"model": "tuned", "against": "default", "metric": "quality", "value": 0.08, "low": 0.02, "high": 0.13, "n": 40}


def make(storage: Path, *, verdict: bool = True, count: int = 12, changes: dict[str, Any] | None = None) -> Path:
    """Write `<storage>/s` with trials whose quality has one best rate, and images of the final split."""
    home = storage / "s"
    home.mkdir(parents=True)
    space, rng = load_space("tiny_lora", changes or {}), random.Random(0)
    recipe = space.start({})
    said = FinalVerdict(winner=5, beats_default=True, sentence="Trial 5 beats the default.", differences=[GAIN])
    SearchCard(
        name="s",
        space=space,
        recipe=recipe.model_dump(mode="json"),
        environment={"hardware": "2 CPU cores", "date": "2026-11-24", "versions": {"optuna": "5.0.0"}},
        verdict=said if verdict else None,
    ).write(home)
    with Recorder(home / "records") as recorder:
        for number in range(count):
            rate = 2e-3 if number == 5 else 10 ** rng.uniform(-3.6, -1.8)
            quality = 0.7 - 0.2 * abs(math.log10(rate) - math.log10(2e-3))
            parameters = {
                "optim.lr": rate,
                "tuning.rank": rng.choice([2, 4, 8, 16]),
                "tuning.dropout": rng.random() * 0.3,
            }
            state: Any = "finished" if number in (0, 5) or quality > 0.6 else "stopped"
            trial = Trial(number, parameters, 300, f"s/trial-{number:03d}", state)
            for place in range(1, 4 if state == "finished" else 2):
                score = quality - 0.1 * (3 - place)
                scores = {"quality": score, "dino_i": score + 0.1, "clip_t": 0.9 - score, "pres": score / 2}
                evaluation = TrialScores(100 * place, scores, 60.0 * number + 20 * place)
                trial.evaluations.append(evaluation)
                trial.seconds, trial.ended_s = 20.0 * place, evaluation.at_s
                trial.kept = 300 if place == 3 else None
                write_trial(recorder, trial, evaluation)
        failed = Trial(count, {"optim.lr": 2e-2}, 300, "s/trial-last", "failed", error="the loss is not finite")
        write_trial(recorder, failed)
        for model, value in (("base", 0.31), ("default", 0.6), ("tuned", 0.7)):
            row = {"step": 300, "model": model, "subject": "robot", "metric": "dino_i", "value": value, "n": 40}
            recorder.write("scores", row | {"low": value - 0.03, "high": value + 0.03, "split": "final"})
            _image(recorder, home, model, "a photo of a robot on the beach", "subject", 3_000_000)
        _image(recorder, home, "real", "", "real", 0)
    samples = storage / "s" / "trial-005" / "samples" / "step-0000300"
    samples.mkdir(parents=True)
    Image.new("RGB", (8, 8), "green").save(samples / "000.png")
    return home


def _image(recorder: Recorder, home: Path, model: str, prompt: str, purpose: str, seed: int) -> None:
    path = home / "pictures" / f"{model}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    row = {"step": 300, "model": model, "subject": "robot", "prompt": prompt, "seed": seed, "purpose": purpose}
    recorder.write("pictures", row | {"path": f"pictures/{model}.png", "split": "final"})


def test_the_report_says_what_the_search_found(tmp_path: Path) -> None:
    written = write_report(make(tmp_path))
    plain = written.plain
    assert plain["search"]["verdict"]["beats_default"] is True
    assert max(plain["importance"], key=plain["importance"].get) == "optim.lr"
    page, text = written.html.read_text(), written.markdown.read_text()
    assert text.startswith("# Search s\n")
    assert "**Trial 5 beats the default.**" in text
    assert "+0.080 [+0.020, +0.130]" in page
    assert "the loss is not finite" in text  # why a trial failed
    for title in ("On the final split", "Trials", "Parameters", "Trade-offs", "How it was made"):
        assert f"## {title}" in text
    for panel in ("Parallel coordinates", "Importance", "Against seconds", "Against training steps", "Pareto front"):
        assert panel in text
    assert page.count("<svg") >= 5
    assert page.count("data:image/png;base64") >= 5  # photo, base, default, tuned, and the sample of the front
    assert json.loads(written.json.read_text()) == plain


def test_a_search_under_way_has_a_report_that_says_so(tmp_path: Path) -> None:
    home = make(tmp_path, verdict=False, count=2)
    text = text_of(home)
    assert "The search has not ended" in text
    assert "Importance is not given: too few trials" in text
    for file in (home / "records").glob("*.parquet"):
        file.unlink()
    assert "No trial has a score yet" in text_of(home)


def test_the_command_makes_it_without_a_framework(tmp_path: Path, here: Here) -> None:
    home = make(tmp_path)
    code, out, _ = here("report", str(home), "--json")
    assert code == 0
    assert json.loads(out)["search"]["verdict"]["winner"] == 5
    assert loaded_by(command("report", str(home)), tmp_path) & FRAMEWORKS == set()


def test_a_damaged_search_is_one_line(tmp_path: Path, here: Here) -> None:
    home = make(tmp_path)
    next((home / "records").glob("trials-*")).write_bytes(b"PAR1")
    code, out, err = here("report", str(home))
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "cannot be read" in err


@pytest.mark.parametrize(
    ("parameter", "value", "place"),
    [
        (LogUniform(kind="loguniform", low=1e-4, high=1e-2), 1e-3, 0.5),
        (LogUniform(kind="loguniform", low=1e-4, high=1e-2), 1e-5, None),
        (Int(kind="randint", low=0, high=10), 4, 0.4),
        (Int(kind="randint", low=1, high=100, log=True), 10, 0.5),
        (Choice(kind="choice", values=("a", "b", "c")), "b", 0.5),
        (Choice(kind="choice", values=("a",)), "z", None),
        (LogUniform(kind="loguniform", low=1e-4, high=1e-2), None, None),
    ],
)
def test_a_value_has_its_height_between_the_bounds(parameter: Any, value: Any, place: float | None) -> None:
    assert height(parameter, value) == pytest.approx(place)
    assert len(ends(parameter)) == (len(parameter.values) if isinstance(parameter, Choice) else 2)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    found = open_search(make(tmp_path))
    assert found.winner is not None and found.winner.number == 5
    assert [trial.state for trial in found.trials].count("failed") == 1
    assert found.winner in found.front


def test_every_two_of_three_metrics_have_an_image(tmp_path: Path) -> None:
    several = {"metric": ["dino_i", "clip_t", "pres"], "searcher.kind": "nsga2", "scheduler": {"kind": "none"}}
    text = text_of(make(tmp_path, changes=several))
    assert "on the Pareto front of DINO-I, CLIP-T, PRES." in text
    for panel in ("CLIP-T against DINO-I", "PRES against DINO-I", "PRES against CLIP-T"):
        assert panel in text
