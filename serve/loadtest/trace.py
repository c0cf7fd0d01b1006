"""LoadGen's own times of a run, from the trace that it writes: nothing else tells when a query was due.

Every sample has one event: `ts` is the time it was due (microseconds), `issue_start_ns` and `complete_ns` count from
there. LoadGen's latency is the last of them, so a late generator or a full server cannot hide a wait.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The file as a whole is not JSON: LoadGen quotes the keys of its log lines twice.
_EVENT = re.compile(
    r'"name":"Sample".*?"ph":"b".*?"ts":([\d.]+),"args":\{"sample_seq":(\d+),"query_seq":\d+,"sample_idx":(\d+),'
    r'"issue_start_ns":(-?\d+),"complete_ns":(-?\d+)'
)


@dataclass(frozen=True)
class Timed:
    """One sample on LoadGen's clock, in seconds; latency in milliseconds."""

    sample: int
    intended_s: float
    issued_s: float
    latency_ms: float


def timed(trace: Path, count: int) -> list[Timed]:
    """The samples of a run in the order of their arrival. Raises ValueError when the trace has not `count` of them."""
    found = {}
    for ts, sequence, sample, issue_ns, complete_ns in _EVENT.findall(trace.read_text(errors="replace")):
        due_s = float(ts) / 1e6
        found[int(sequence)] = Timed(int(sample), due_s, due_s + int(issue_ns) / 1e9, int(complete_ns) / 1e6)
    if sorted(found) != list(range(count)):
        raise ValueError(f"LoadGen's trace has {len(found)} of {count} samples")
    return [found[sequence] for sequence in range(count)]
