"""How a child of the serving benchmark answers: `python SCRIPT ARM.json RESULT.json`; a failure is a result too."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Beside the children, whose own folder holds no `serve.py` to hide the package `serve`.
sys.path.append(str(Path(__file__).parents[1]))

from servearms import ServeArm


def answer(measure: Callable[[ServeArm, Path], dict[str, Any]]) -> None:
    """Measure the arm of the first file, in its folder, and write what was found to the second."""
    plain = json.loads(Path(sys.argv[1]).read_text())
    plain.pop("memory_limit")
    plain["mix"] = {int(steps): weight for steps, weight in plain["mix"].items()}
    folder = Path(sys.argv[1]).parent / "work"
    folder.mkdir()
    try:
        result = {"status": "ok", **measure(ServeArm(**plain), folder)}
    except Exception as error:  # whatever it was, the other tables are still wanted
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        result = {"status": f"failed: {type(error).__name__}: {lines[0][:160] if lines else ''}"}
    Path(sys.argv[2]).write_text(json.dumps(result))
