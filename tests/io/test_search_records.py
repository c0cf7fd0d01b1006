"""A search on disk: what is written comes back, and the best, the front and the progress are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdxl_ray.config.search_space import load_space
from sdxl_ray.errors import UserError
from sdxl_ray.io.records import Recorder
from sdxl_ray.io.search_records import (
    FinalVerdict,
    SearchCard,
    Trial,
    TrialScores,
    TrialState,
    best,
    front,
    progress,
    read_trials,
    steps_taken,
    write_trial,
)


def trial(
    number: int, *scores: float, state: TrialState = "finished", start_s: float = 0.0, kept: int | None = None
) -> Trial:
    """A trial with an evaluation every 100 steps and 10 seconds; it keeps the last one."""
    evaluations = [
        TrialScores(100 * place, {"quality": score, "pres": 1 - score}, start_s + 10 * place)
        for place, score in enumerate(scores, start=1)
    ]
    last = evaluations[-1].step if evaluations else 0
    return Trial(
        number,
        {"optim.lr": 1e-3 * (number + 1)},
        300,
        f"s/trial-{number:03d}",
        state,
        evaluations,
        seconds=10.0 * len(evaluations),
        ended_s=evaluations[-1].at_s if evaluations else 0.0,
        kept=(kept or last) if state == "finished" else None,
    )


def test_trials_come_back_as_they_were_written(tmp_path: Path) -> None:
    wanted = [trial(0, 0.3, 0.5, kept=100), trial(1, 0.2, state="stopped"), trial(2, state="failed")]
    wanted[2].error = "the loss is not finite"
    with Recorder(tmp_path / "records") as recorder:
        for one in wanted:
            write_trial(recorder, Trial(one.number, one.parameters, one.steps, one.run))  # as it began
            for evaluation in one.evaluations:
                write_trial(recorder, one, evaluation)
            write_trial(recorder, one)
    assert read_trials(tmp_path) == wanted
    assert read_trials(tmp_path / "nowhere") == []


def test_the_best_is_a_finished_trials_artifact() -> None:
    trials = [trial(0, 0.5), trial(1, 0.9, state="stopped"), trial(2, 0.8, 0.6, kept=100), trial(3, 0.7)]
    assert best(trials, "quality", "max") is trials[2]  # its artifact is of step 100, where it had 0.8
    assert best(trials, "quality", "min") is trials[0]
    assert best(trials[1:2], "quality", "max") is None
    assert best([trial(0, 0.5), trial(1, 0.5)], "quality", "max").number == 0  # type: ignore[union-attr]


def test_the_front_is_what_no_trial_beats_in_everything() -> None:
    trials = [trial(0, 0.5), trial(1, 0.6), trial(2, 0.7, state="stopped"), trial(3, 0.4)]
    trials[3].evaluations[0].metrics["pres"] = 0.1
    assert [one.number for one in front(trials, {"quality": "max", "pres": "min"})] == [1, 3]


def test_progress_counts_the_steps_of_all_trials_until_then() -> None:
    trials = [
        trial(0, 0.3, 0.4),  # ends at 20 s
        trial(1, 0.2, state="stopped", start_s=5),  # 100 steps by 15 s
        trial(2, 0.35, 0.6, start_s=20),  # ends at 40 s
        trial(3, 0.5, start_s=40),
    ]
    assert progress(trials, "quality", "max") == [(20.0, 300, 0.4), (40.0, 500, 0.6)]
    assert steps_taken(trials) == 600


def test_a_card_comes_back_and_a_damaged_one_is_one_line(tmp_path: Path) -> None:
    space = load_space("tiny_lora")
    verdict = FinalVerdict(winner=3, beats_default=True, sentence="Trial 3 beats the default.")
    card = SearchCard(name="s", space=space, recipe=space.start({}).model_dump(mode="json"), verdict=verdict)
    card.write(tmp_path)
    assert SearchCard.open(tmp_path) == card
    for text, said in (("{", "cannot be read"), ('{"name": "s"}', "space"), ("[]", "search.json")):
        (tmp_path / "search.json").write_text(text)
        with pytest.raises(UserError, match=said) as caught:
            SearchCard.open(tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is not a search"):
        SearchCard.open(tmp_path / "nowhere")
