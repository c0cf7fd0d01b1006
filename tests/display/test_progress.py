"""Progress, tables and units: what people read."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sdxl_ray.display.progress import Progress
from sdxl_ray.display.table import Column, Table
from sdxl_ray.display.units import bytes_text, count_text, seconds_text


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(rows: list[tuple[float, dict[str, object]]], every_s: float = 5.0) -> list[str]:
    """The lines of a log, for (seconds passed before the row, row)."""
    clock, stream = Clock(), io.StringIO()
    with Progress(stream, every_s=every_s, clock=clock) as progress:
        for seconds, row in rows:
            clock.now += seconds
            progress.row(row)
    return stream.getvalue().splitlines()


def step(number: int, **more: object) -> dict[str, object]:
    return {"kind": "step", "step": number, "steps": 100, "loss": 0.25, "samples_per_s": 2.0, **more}


def test_scores_say_what_they_are_and_what_they_took() -> None:
    metrics = {"dino_i": 0.61234, "pres": -0.1, "quality": 0.5}
    lines = logged(
        [
            (0, {"kind": "scores", "step": 40, "metrics": metrics, "seconds": 4.2}),
            (0, {"kind": "overfitting", "step": 40, "text": "since step 20 it rose"}),
            (0, step(41)),
        ]
    )
    assert lines[0] == "step 40: quality 0.500 (dino_i 0.612, pres -0.100), scored in 4.2 s"
    assert lines[1] == "step 40: overfitting: since step 20 it rose"
    assert lines[2].endswith("quality 0.500 at 40")


def test_a_checkpoint_is_one_line() -> None:
    rows = [{"kind": "saving", "step": 5}, {"kind": "checkpoint", "step": 5, "seconds": 1.4}]
    assert logged([(0, row) for row in rows]) == ["step 5: checkpoint written in 1.4 s"]


def test_a_log_gets_a_line_every_few_seconds() -> None:
    lines = logged([(1.0, step(number)) for number in range(1, 101)])
    assert len(lines) == 21
    assert lines[0] == "[1.0 s] training 1/100  loss 0.2500  2.00 samples/s"
    assert lines[1] == "[6.0 s] training 6/100  loss 0.2500  2.00 samples/s  ETA 1 min 34 s"
    assert lines[-1] == "[1 min 40 s] training 100/100  loss 0.2500  2.00 samples/s"


def test_a_log_gets_phases_looks_and_notes_at_once() -> None:
    rows: list[dict[str, object]] = [
        {"kind": "phase", "name": "caching images", "done": 0, "total": 3},
        {"kind": "phase", "name": "caching images", "done": 1, "total": 3},
        {"kind": "phase", "name": "caching images", "done": 3, "total": 3},
        {"kind": "phase", "name": "loading the base"},
        step(10, peak_bytes=[2**30, 3 * 2**29]),
        {"kind": "validation", "step": 10, "loss": 0.125},
        {"kind": "sample", "step": 10, "path": "runs/dog/samples/a.png"},
        {"kind": "note", "text": "worker 1 was lost [really]"},
        {"kind": "checkpoint", "step": 10, "seconds": 1.25},
        {"kind": "resume", "step": 10, "workers": 1},
        {"kind": "artifact", "step": 100, "path": "runs/dog/artifact"},
        {"kind": "unheard of", "x": 1},
    ]
    assert logged([(0.0, row) for row in rows]) == [
        "[0 ms] caching images 0/3",
        "[0 ms] caching images 3/3",
        "[0 ms] loading the base",
        "[0 ms] training 10/100  loss 0.2500  2.00 samples/s  memory 1.0 GiB / 1.5 GiB",
        "step 10: validation loss 0.1250",
        "step 10: samples in runs/dog/samples/a.png",
        "worker 1 was lost [really]",
        "step 10: checkpoint written in 1.2 s",
        "going on from step 10 with 1 worker",
        "artifact in runs/dog/artifact",
        "kind unheard of, x 1",
    ]


def test_the_eta_follows_the_speed_and_survives_a_resume() -> None:
    slow = logged([(1.0, step(1)), *((10.0, step(number)) for number in range(2, 60))], every_s=0.0)[-1]
    assert "ETA 6 min 50 s" in slow
    back = logged([(1.0, step(50)), (1.0, step(51)), (30.0, step(40)), (2.0, step(41))], every_s=0.0)
    assert "ETA" not in back[2]
    assert "ETA 1 min 58 s" in back[3]


def test_long_lines_stay_one_line() -> None:
    (line,) = logged([(0.0, {"kind": "sample", "step": 1, "path": "a" * 300})])
    assert line.endswith("a" * 300)


def test_a_terminal_gets_a_live_display_and_one_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream, clock = Terminal(), Clock()
    with Progress(stream, clock=clock) as progress:
        progress.row(step(3))
        clock.now += 60
        progress.row(step(4))
        progress.row({"kind": "validation", "step": 4, "loss": 0.5})
    text = stream.getvalue()
    assert "\x1b[" in text
    assert "4/100" in text
    assert "ETA 1 h 36 min" in text
    assert "step 4: validation loss 0.5000" in text
    assert text.splitlines()[-1].endswith(
        "[1 min 00 s] training 4/100  loss 0.2500  2.00 samples/s  ETA 1 h 36 min  validation 0.5000 at 4"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0 ms"),
        (0.85, "850 ms"),
        (0.9999, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86399, "1 d 00 h"),
        (1e6, "11 d 14 h"),
        (float("inf"), "?"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_bytes_and_counts() -> None:
    assert [bytes_text(size) for size in (0, 1023, 1024, 2**20 - 1, 24 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.0 MiB",
        "24.0 GiB",
    ]
    assert count_text(2_567_463_684) == "2,567,463,684"


def test_tables() -> None:
    columns = [Column("arm", "arm"), Column("bytes", "file", bytes_text), Column("loss", "a|b")]
    table = Table(
        columns, [{"arm": "lora", "bytes": 2**24, "loss": None}, {"arm": "full", "bytes": 2**34, "loss": 0.5}]
    )
    assert table.text().splitlines() == [
        "arm       file  a|b",
        "----  --------  ---",
        "lora  16.0 MiB    -",
        "full  16.0 GiB  0.5",
    ]
    assert table.markdown().splitlines() == [
        "| arm  |     file | a\\|b |",
        "| ---- | -------: | ---: |",
        "| lora | 16.0 MiB |    - |",
        "| full | 16.0 GiB |  0.5 |",
    ]
    with pytest.raises(ValueError, match="no row has lss"):
        Table([Column("lss", "loss")], [{"loss": 1.0}])
    assert Table(columns, []).text().splitlines()[0] == "arm  file  a|b"


def test_the_text_of_a_table_is_the_same_at_any_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """And in it no mark-up of rich is read: names come from users' files."""
    table = Table([Column("name", "name"), Column("more", "more")], [{"name": "[bold]:dog:[/]", "more": "word " * 60}])
    texts = set()
    for columns, force in (("20", "1"), ("200", "")):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("FORCE_COLOR", force)
        texts.add(table.text())
    assert texts == {f"name            more\n--------------  {'-' * 300}\n[bold]:dog:[/]  {('word ' * 60).rstrip()}"}
    narrow = Console(file=io.StringIO(), width=30, color_system=None)
    narrow.print(table)
    lines = narrow.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 3
    assert lines[2].endswith("…")
