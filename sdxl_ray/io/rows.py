"""Rows: what a run reports and records, and the functions that take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
OnRow = Callable[[Row], None]
#: (done, total)
OnProgress = Callable[[int, int], None]
