"""Records: what is written comes back bit for bit, after kills and resumes too."""

from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.records import KEYS, TABLES, Recorder, read


def steps(folder: Path) -> list[int]:
    return read(folder, "steps")["step"].to_pylist()


def write_steps(recorder: Recorder, first: int, last: int, scale: float = 1.0) -> None:
    for step in range(first, last + 1):
        recorder.write("steps", {"step": step, "loss": scale / step})


def test_every_table_has_a_key_of_required_columns() -> None:
    assert KEYS.keys() == TABLES.keys()
    for table, schema in TABLES.items():
        assert all(not schema.field(key).nullable for key in KEYS[table]), table


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=64), min_size=1, max_size=20))
def test_losses_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, losses: list[float]) -> None:
    folder = tmp_path_factory.mktemp("records")
    with Recorder(folder, rows=3) as recorder:
        for step, loss in enumerate(losses):
            recorder.write("steps", {"step": step, "loss": loss})
    back = read(folder, "steps")["loss"].to_pylist()
    assert [struct.pack("<d", value) for value in back] == [struct.pack("<d", value) for value in losses]


def test_rows_are_sorted_and_the_last_of_equal_keys_counts(tmp_path: Path) -> None:
    with Recorder(tmp_path, rows=2) as recorder:
        for step, index, loss in [(2, 1, 0.3), (2, 0, 0.2), (1, 0, 0.1), (2, 1, 0.9)]:
            recorder.write("examples", {"step": step, "index": index, "picture": "ab", "loss": loss})
    rows = read(tmp_path, "examples").to_pylist()
    assert [(row["step"], row["index"], row["loss"]) for row in rows] == [(1, 0, 0.1), (2, 0, 0.2), (2, 1, 0.9)]


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    Recorder(tmp_path).close()
    assert read(tmp_path, "validation").schema.names == ["step", "loss", "n"]
    assert list(tmp_path.iterdir()) == []


def test_a_second_recorder_appends(tmp_path: Path) -> None:
    with Recorder(tmp_path, rows=4) as recorder:
        write_steps(recorder, 1, 6)
    with Recorder(tmp_path, rows=4) as recorder:
        write_steps(recorder, 7, 9)
    assert steps(tmp_path) == list(range(1, 10))
    assert sorted(part.name for part in tmp_path.iterdir()) == [
        "steps-000000000.parquet",
        "steps-000000004.parquet",
        "steps-000000006.parquet",
    ]


@pytest.mark.parametrize("resumed", [0, 3, 4, 5, 8, 20])
def test_resume_forgets_what_comes_after(tmp_path: Path, resumed: int) -> None:
    with Recorder(tmp_path, rows=4) as recorder:
        write_steps(recorder, 1, 10)
        recorder.write("validation", {"step": 8, "loss": 0.5, "n": 8})
    with Recorder(tmp_path, rows=4) as recorder:
        recorder.resume(resumed)
        recorder.flush()
        assert steps(tmp_path) == list(range(1, min(resumed, 10) + 1))
        write_steps(recorder, resumed + 1, resumed + 3, scale=2.0)
    table = read(tmp_path, "steps")
    assert table["step"].to_pylist() == [*range(1, min(resumed, 10) + 1), *range(resumed + 1, resumed + 4)]
    assert table["loss"].to_pylist()[-1] == 2.0 / (resumed + 3)
    assert read(tmp_path, "validation").num_rows == (resumed >= 8)


def test_resume_drops_waiting_rows(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        write_steps(recorder, 1, 5)
        recorder.resume(2)
    assert steps(tmp_path) == [1, 2]


def test_rows_that_waited_long_are_written(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, seconds=0.0)
    write_steps(recorder, 1, 2)
    assert steps(tmp_path) == [1, 2]
    recorder = Recorder(tmp_path)
    write_steps(recorder, 3, 4)
    assert steps(tmp_path) == [1, 2]


def test_sigkill_loses_at_most_the_buffer_and_leaves_nothing_unreadable(tmp_path: Path) -> None:
    code = (
        "import sys, itertools; from sdxl_ray.io.records import Recorder\n"
        "recorder = Recorder(sys.argv[1], rows=5)\n"
        "for step in itertools.count(1):\n"
        "    recorder.write('steps', {'step': step, 'loss': 1 / step})\n"
        "    print(step, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    seen = 0
    for line in child.stdout:
        seen = int(line)
        if seen == 103:
            os.kill(child.pid, signal.SIGKILL)
            break
    seen = max([seen, *(int(line) for line in child.stdout if line.endswith("\n"))])
    child.wait()
    child.stdout.close()
    kept = steps(tmp_path)
    assert kept == list(range(1, len(kept) + 1))
    assert seen - 5 < len(kept) <= seen + 1
    with Recorder(tmp_path) as recorder:
        recorder.resume(50)
        write_steps(recorder, 51, 60)
    assert steps(tmp_path) == list(range(1, 61))


def test_a_half_written_file_of_a_killed_process_is_not_read(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        write_steps(recorder, 1, 2)
    (tmp_path / ".writing-steps-000000002.parquet").write_bytes(b"PAR1 cut")
    (tmp_path / "notes.txt").write_text("mine")
    assert steps(tmp_path) == [1, 2]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        write_steps(recorder, 1, 2)
    part = tmp_path / "steps-000000000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"steps-000000000\.parquet"):
        read(tmp_path, "steps")


def test_a_part_from_before_a_column_was_added_has_nulls_there(tmp_path: Path) -> None:
    row = {"step": 1, "model": "base", "subject": "s", "prompt": "p", "seed": 1, "path": "a.png", "purpose": "class",
           "split": "final"}  # fmt: skip
    with Recorder(tmp_path) as recorder:
        recorder.write("pictures", {**row, "seconds": 0.5})
    (part,) = tmp_path.glob("pictures-*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(["seconds"]), part)
    with Recorder(tmp_path) as recorder:
        recorder.write("pictures", {**row, "seed": 2, "seconds": 0.25})
    assert read(tmp_path, "pictures")["seconds"].to_pylist() == [None, 0.25]


def test_another_format_is_refused(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        write_steps(recorder, 1, 2)
    part = tmp_path / "steps-000000000.parquet"
    pq.write_table(pq.read_table(part).replace_schema_metadata({"sdxl_ray.io.records": "99"}), part)
    with pytest.raises(UserError, match="format 99"):
        read(tmp_path, "steps")


def test_a_uri_is_a_folder_too(tmp_path: Path) -> None:
    with Recorder(f"file://{tmp_path}/records") as recorder:
        write_steps(recorder, 1, 3)
    assert steps(tmp_path / "records") == [1, 2, 3]
    assert read(f"file://{tmp_path}/records", "steps").num_rows == 3


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'loss'"):
        recorder.write("steps", {"step": 1, "los": 0.5})
    with pytest.raises(ValueError, match="needs 'loss'"):
        recorder.write("steps", {"step": 1})
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        recorder.write("step", {})
    recorder.write("steps", {"step": 1, "loss": math.nan})
    recorder.close()
    assert math.isnan(read(tmp_path, "steps")["loss"][0].as_py())


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        Recorder(tmp_path / "file" / "records")
    with pytest.raises(UserError, match="no records folder"):
        read(tmp_path / "nothing", "steps")
    with pytest.raises(UserError, match="cannot be opened"):
        read("nonsense://bucket/records", "steps")


def test_a_write_that_fails_keeps_the_rows(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "records")
    write_steps(recorder, 1, 3)
    (tmp_path / "records").rmdir()
    with pytest.raises(RunError, match="cannot be written"):
        recorder.flush()
    (tmp_path / "records").mkdir()
    recorder.flush()
    assert steps(tmp_path / "records") == [1, 2, 3]


def test_a_table_that_is_forgotten_begins_anew(tmp_path: Path) -> None:
    with Recorder(tmp_path, rows=2) as recorder:
        write_steps(recorder, 1, 5)
        recorder.write("validation", {"step": 1, "loss": 0.5, "n": 4})
        recorder.forget("steps")
        write_steps(recorder, 7, 8)
    assert steps(tmp_path) == [7, 8]
    assert read(tmp_path, "validation").num_rows == 1


def test_requests_have_no_step_and_survive_a_resume(tmp_path: Path) -> None:
    row = {field.name: {"string": "a", "double": 1.0, "int64": 1}[str(field.type)] for field in TABLES["requests"]}
    with Recorder(tmp_path) as recorder:
        recorder.write("requests", row)
        write_steps(recorder, 1, 3)
        recorder.resume(2)
    assert read(tmp_path, "requests").to_pylist() == [row]
    assert steps(tmp_path) == [1, 2]
