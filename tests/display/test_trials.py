"""Trials as they are shown: one line for what is new in a log, a table on a terminal and at the end."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from sdxl_ray.display.trials import TrialsProgress, parameters_text, trials_table


def row(number: int, state: str, step: int, **more: Any) -> dict[str, Any]:
    parameters = {"optim.lr": 0.00123456, "tuning.rank": 8}
    known = {"kind": "trial", "trial": number, "state": state, "step": step, "steps": 300, "seconds": 62.0}
    return known | {"parameters": parameters, "metrics": {}, "error": None} | more


def test_a_log_has_one_line_for_what_is_new() -> None:
    stream = io.StringIO()
    with TrialsProgress(stream, {"quality": "max"}) as progress:
        progress.row(row(3, "running", 0))
        progress.row(row(3, "running", 0))  # nothing new
        progress.row(row(3, "running", 100, metrics={"quality": 0.5123, "pres": 0.1}))
        progress.row(row(3, "failed", 100, metrics={"quality": 0.5123}, error="the loss is not finite"))
        progress.row({"kind": "note", "text": "budget.steps=900 is spent"})
    lines = [line for line in stream.getvalue().splitlines() if not line.startswith("[")]
    assert lines == [
        "trial 3: running  lr 0.00123, rank 8",
        "trial 3: running  at step 100 of 300  quality 0.5123",
        "trial 3: failed  at step 100 of 300  quality 0.5123  (the loss is not finite)",
        "budget.steps=900 is spent",
    ]


def test_a_terminal_has_the_table_above_the_bar() -> None:
    progress = TrialsProgress(io.StringIO(), {"quality": "max"})
    progress.row({"kind": "phase", "name": "searching", "done": 0, "total": 4})
    progress.row(row(0, "finished", 300, metrics={"quality": 0.4}))
    progress.row(row(1, "running", 100, metrics={"quality": 0.5}))
    shown = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    shown.print(progress._image())
    lines = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].split() == ["trial", "state", "step", "quality", "time", "parameters"]
    assert lines[2].split()[:4] == ["*0", "finished", "300/300", "0.4000"]
    assert "searching" in lines[-2] and "1/4" in lines[-2]


def test_the_best_finished_trial_is_marked_whatever_the_mode() -> None:
    rows = [
        row(0, "finished", 300, metrics={"loss": 0.4}),
        row(1, "finished", 300, metrics={"loss": 0.3}),
        row(2, "stopped", 100, metrics={"loss": 0.1}),
        row(3, "failed", 0),
    ]
    text = trials_table(rows, {"loss": "min"}).text()
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["0", "*1", "2", "3"]
    assert "as the recipe has it" in text.splitlines()[2]
    assert "*0" in trials_table(rows, {"loss": "max"}).text()


def test_parameters_are_their_last_words() -> None:
    assert parameters_text('{"optim.lr": 1e-05, "tuning.text_encoders": [1, 2]}') == "lr 1e-05, text_encoders [1, 2]"
