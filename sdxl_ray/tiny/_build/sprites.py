"""The drawings that scenes are made of: fetched from package registries once, rendered, kept in the user's cache.

Only the builder needs them; the shipped base and its subjects do not.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from sdxl_ray.errors import RunError, UserError
from sdxl_ray.tiny._build.catalog import ACCESSORIES, DRAWINGS, SETS, DrawingSet

EDGE = 128  # pixels of a rendered drawing
_FETCH_SECONDS = 300


def fetch(image_set: DrawingSet, cache_folder: Path) -> Path:
    """The package's archive in `cache_folder`, downloaded with npm when it is not there yet.

    Raises UserError when npm is missing, RunError when the registry cannot be reached or serves other content.
    """
    name = f"{image_set.package}@{image_set.version}"
    archive = cache_folder / f"{name.strip('@').replace('/', '-').replace('@', '-')}.tgz"
    if not archive.is_file():
        if not shutil.which("npm"):
            raise UserError(
                f"the builder fetches {name} with npm, which is not installed: install nodejs and npm. "
                "The shipped weights do not need it"
            )
        cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder) as draft:
            command = ["npm", "pack", name, "--silent", "--pack-destination", draft]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
                failure = done.stderr.strip()[-300:] if done.returncode else ""
            except subprocess.TimeoutExpired:
                failure = f"no answer in {_FETCH_SECONDS} s"
            packed = list(Path(draft).glob("*.tgz"))
            if failure or not packed:
                raise RunError(
                    f"the image set {name} could not be fetched ({failure or 'nothing came'}). "
                    "Only building anew needs it: the shipped weights do not"
                )
            packed[0].rename(archive)
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != image_set.integrity:
        archive.unlink()
        raise RunError(f"{name} is not the archive it was: expected {image_set.integrity}, found {found}; removed")
    return archive


class Sprites:
    """All drawings as RGBA, 128 x 128, cut to their ink and centred: `sprites[class_name, set_name]`.

    Accessories are under ("accessory", name). The drawings of further sets are to be admitted.
    """

    def __init__(self, cache_folder: Path, further: Mapping[str, DrawingSet] | None = None) -> None:
        self._archives = {name: fetch(entry, cache_folder) for name, entry in {**SETS, **(further or {})}.items()}
        self._drawings = dict(DRAWINGS)
        self._files: dict[tuple[str, str], dict[str, Any]] = {}
        self._drawn: dict[tuple[str, str], Image.Image] = {}

    def __getitem__(self, key: tuple[str, str]) -> Image.Image:
        if key not in self._drawn:
            name, which = key
            image = (
                self._render("flat", ACCESSORIES[which])
                if name == "accessory"
                else self._render(which, self._drawings[name][which])
            )
            self._drawn[key] = _centred(image)
        return self._drawn[key]

    def admit(self, drawings: dict[str, dict[str, str]]) -> None:
        """Know further drawings of things: name -> its drawing in each set."""
        for name, named in drawings.items():
            self._drawings[name] = {**self._drawings.get(name, {}), **named}

    def categories(self, set_name: str) -> dict[str, list[str]]:
        """Category -> names of drawings, as the set's makers sort them."""
        sorted_so: dict[str, list[str]] = self._file(set_name, "metadata.json")["categories"]
        return sorted_so

    def icon(self, set_name: str, name: str) -> str:
        """How the set spells a name, or "" where it has no such drawing."""
        collection = self._file(set_name, "icons.json")
        known = collection["icons"].keys() | collection.get("aliases", {}).keys()
        return next((spelled for spelled in (name, name.replace("-", "")) if spelled in known), "")

    def _render(self, set_name: str, icon: str) -> Image.Image:
        archive = self._archives[set_name]
        if set_name == "3d":
            return Image.open(io.BytesIO(_member(archive, f"assets/{icon}.webp"))).convert("RGBA")
        import resvg_py

        collection = self._file(set_name, "icons.json")
        icon = collection.get("aliases", {}).get(icon, {}).get("parent", icon)
        body = collection["icons"][icon]
        box = [body.get(key, collection.get(key, other)) for key, other in _VIEW_BOX.items()]
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{" ".join(map(str, box))}">{body["body"]}</svg>'
        drawn = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * EDGE))
        return Image.open(io.BytesIO(drawn)).convert("RGBA")

    def _file(self, set_name: str, name: str) -> dict[str, Any]:
        if (set_name, name) not in self._files:
            self._files[set_name, name] = json.loads(_member(self._archives[set_name], name))
        return self._files[set_name, name]


_VIEW_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}


@cache
def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as packed:
        file = packed.extractfile(f"package/{name}")
        assert file is not None, name
        return file.read()


def _centred(image: Image.Image) -> Image.Image:
    """Cut to the ink, made square and brought to EDGE pixels."""
    ink = image.crop(image.getchannel("A").getbbox())
    edge = max(ink.size)
    square = Image.new("RGBA", (edge, edge))
    square.paste(ink, ((edge - ink.width) // 2, (edge - ink.height) // 2))
    # Premultiplied, or the colour hidden under transparent pixels would fringe the edges.
    return square.convert("RGBa").resize((EDGE, EDGE), Image.Resampling.LANCZOS).convert("RGBA")
