"""`python -m sdxl_ray.docs`: write the settings references again after settings have changed."""

from __future__ import annotations

import sys

from sdxl_ray.docs.settings_pages import FOLDER, pages


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{FOLDER / name}\n")


if __name__ == "__main__":
    main()
