"""The trials of a search as a live table under the progress line; in a log, one line for every evaluation and ending.

with TrialsProgress(sys.stderr, {"quality": "max"}) as progress:
    progress.row({"kind": "trial", "trial": 3, "state": "running", "step": 100, "steps": 300, "seconds": 41.0,
                  "parameters": '{"optim.lr": 0.001}', "metrics": {"quality": 0.52}})
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Group, RenderableType

from sdxl_ray.display.progress import Progress
from sdxl_ray.display.table import Column, Table
from sdxl_ray.display.units import seconds_text

#: Rows of a live table; older trials that ended scroll out of it.
_SHOWN = 16


class TrialsProgress(Progress):
    """The display of a search. modes: metric -> "max" or "min", in the order of the columns."""

    def __init__(self, stream: TextIO, modes: Mapping[str, str]) -> None:
        self._modes, self._rows = dict(modes), dict[int, dict[str, Any]]()
        super().__init__(stream)  # which asks for the first image

    def row(self, row: Mapping[str, Any]) -> None:
        """Take one row, as `Progress.row` does."""
        if row.get("kind") != "trial":
            super().row(row)
            return
        before = self._rows.get(row["trial"], {})
        self._rows[row["trial"]] = dict(row)
        if (before.get("state"), before.get("step")) != (row["state"], row["step"]):
            self._report(row)
            if self._state.name == "searching":  # before it, rows are what earlier sessions did
                ended = sum(one["state"] != "running" for one in self._rows.values())
                self._advance("searching", ended, self._state.total)

    def _report(self, row: Mapping[str, Any]) -> None:
        if self._console.is_terminal:
            return
        facts = [f"trial {row['trial']}: {row['state']}"]
        if row["step"]:
            facts.append(f"at step {row['step']} of {row['steps']}")
        facts += [f"{name} {row['metrics'][name]:.4f}" for name in self._modes if name in row["metrics"]]
        if row["state"] == "running" and not row["step"]:
            facts.append(parameters_text(row["parameters"]))
        if row.get("error"):
            facts.append(f"({row['error']})")
        self._say("  ".join(facts))

    def _image(self) -> RenderableType:
        line = super()._image()
        if not self._rows:
            return line
        return Group(trials_table(list(self._rows.values())[-_SHOWN:], self._modes), line)


def trials_table(rows: Sequence[Mapping[str, Any]], modes: Mapping[str, str]) -> Table:
    """Rows of the table `trials`, with their `metrics`, as a table; the best finished one is marked."""
    metric, mode = next(iter(modes.items()))
    done = [row for row in rows if row["state"] == "finished" and metric in row["metrics"]]
    top = (max if mode == "max" else min)(done, key=lambda row: row["metrics"][metric], default=None)
    columns = [
        Column("trial", "trial", align="right"),
        Column("state", "state"),
        Column("step", "step", align="right"),
        *(Column(name, name, "{:.4f}".format) for name in modes),
        Column("seconds", "time", seconds_text, align="right"),
        Column("parameters", "parameters"),
    ]
    shown = [
        {
            **row,
            **{name: row["metrics"].get(name) for name in modes},
            "trial": f"{'*' if row is top else ''}{row['trial']}",
            "step": f"{row['step']}/{row['steps']}",
            "parameters": "as the recipe has it" if row["trial"] == 0 else parameters_text(row["parameters"]),
        }
        for row in rows
    ]
    return Table(columns, shown)


def parameters_text(parameters: str | Mapping[str, Any]) -> str:
    """`"lr 0.00123, rank 8"`: last words of the paths, numbers with three digits."""
    plain = json.loads(parameters) if isinstance(parameters, str) else parameters
    return ", ".join(f"{path.rpartition('.')[2]} {_value(value)}" for path, value in plain.items())


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
