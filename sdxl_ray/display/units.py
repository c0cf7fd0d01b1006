"""Quantities as people read them: bytes, seconds, counts."""

from __future__ import annotations

import math

#: (seconds of the smaller unit, how many make the larger one, both names, larger ones where the next pair begins)
_SPANS = ((1, 60, ("min", "s"), 60.0), (60, 60, ("h", "min"), 24.0), (3600, 24, ("d", "h"), math.inf))


def bytes_text(count: float) -> str:
    """`bytes_text(25_769_803_776) == "24.0 GiB"`; powers of 1024, as GPU memory is sold and measured."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(size) >= 1023.95 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def file_size_text(count: float) -> str:
    """`"46.7 MB"`, `"6.94 GB"`; powers of 1000, as files are sold and listed."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def seconds_text(seconds: float) -> str:
    """`"850 ms"`, `"42 s"`, `"3 min 20 s"`, `"2 h 05 min"`, `"3 d 04 h"`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 59.5:
        return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.{int(seconds < 9.95)}f} s"
    # The two largest units that matter, rounded in the smaller one.
    small, per, names = next(span for span in _SPANS if round(seconds / span[0]) < span[1] * span[3])[:3]
    count = round(seconds / small)
    return f"{count // per} {names[0]} {count % per:02d} {names[1]}"


def count_text(count: int) -> str:
    """Every digit, in groups of three: `"2,567,463,684"`."""
    return f"{count:,}"
