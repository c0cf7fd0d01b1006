"""Whether a base comes of the embedded one: its prompts, encoders, words and rates then hold for it too."""

from __future__ import annotations

import json
from pathlib import Path

#: The embedded base's id.
EMBEDDED = "tiny"
#: The file that says what an artifact is (`sdxl_ray.io.artifact`).
MANIFEST = "manifest.json"
#: Full models trained on one another, at most; a manifest could name its own folder.
_LONGEST = 16


def of_embedded_base(base_id: str) -> bool:
    """Whether `base_id` is the embedded base, or a full artifact that was made on it, or on such a one."""
    for _ in range(_LONGEST):
        if base_id == EMBEDDED:
            return True
        file = Path(base_id) / MANIFEST
        try:
            base_id = str(json.loads(file.read_bytes())["base"]["id"]) if file.is_file() else ""
        except (OSError, ValueError, KeyError, TypeError):
            return False
    return False
