"""The files of the embedded base that come with the package: where they are, and whether they are the shipped ones.

    shipped.folder()                  # the base, a plain diffusers folder, every file checked
    shipped.verify(shipped.CLIP)      # the same for an encoder that scores images
    shipped.revision()                # names exactly the base's weights; read from the index alone

`files.json` lists every file of `base/` and `scorers/` with its SHA-256. The base's lines make its revision, so that
another encoder to score with leaves every artifact and image what it was. Importing this module opens no file, and
weights are only read by `faults`, `verify` and `folder`.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from sdxl_ray.errors import UserError
from sdxl_ray.io.file_hash import sha256

ROOT = Path(__file__).parent
BASE = ROOT / "base"
CLIP = ROOT / "scorers" / "clip"
IDENTITY = ROOT / "scorers" / "identity"

INDEX = "files.json"
KNOWN = "known.json"
#: Folders whose every file is in the index.
LISTED = ("base", "scorers")


def files(root: Path = ROOT) -> dict[str, str]:
    """Path relative to `root` -> SHA-256, of every file of the base and the scorers.

    Raises UserError when the index is missing or no index.
    """
    text = _index(root)
    try:
        listed = json.loads(text)
    except ValueError:
        listed = None
    if not (isinstance(listed, dict) and all(isinstance(digest, str) for digest in listed.values())):
        raise UserError(f"the embedded base's {INDEX} is altered: {remedy(INDEX)}")
    return listed


def revision(root: Path = ROOT) -> str:
    """SHA-256 over the index's lines of the base: another one whenever any of its files is another one."""
    base = {name: digest for name, digest in files(root).items() if name.startswith("base/")}
    return hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()


def index_revision(root: Path = ROOT) -> str:
    """SHA-256 of the index: another one whenever any file of the base or the scorers is another one."""
    return hashlib.sha256(_index(root)).hexdigest()


def known(root: Path = ROOT) -> dict[str, list[str]]:
    """What the base can be asked for: its `classes` and `places`, as the builder wrote them."""
    content: dict[str, list[str]] = json.loads((root / KNOWN).read_text())
    return content


def folder() -> Path:
    """The diffusers folder of the embedded base, verified once a process. Raises UserError as `verify` does."""
    return verify(BASE)


@cache
def verify(part: Path, root: Path = ROOT) -> Path:
    """`part` (BASE, CLIP, IDENTITY) itself, once every listed file in it is there and unaltered.

    Hashing takes about 10 ms for 12 MB and is done once a process. Raises UserError: the first file that is not what
    was shipped, its expected and found SHA-256, and what to do.
    """
    for name, fault in faults(part, root).items():
        raise UserError(f"the embedded base's {name} is {fault}: {remedy(name)}")
    return part


def faults(part: Path, root: Path = ROOT) -> dict[str, str]:
    """What is wrong with the files of a part, by path relative to `root`; empty when it is whole."""
    prefix = f"{part.relative_to(root).as_posix()}/"
    listed = {name: digest for name, digest in files(root).items() if name.startswith(prefix)}
    if not listed:
        return {INDEX: f"altered (it lists nothing in {prefix})"}
    return {name: fault for name, expected in listed.items() if (fault := _fault(root / name, expected))}


def remedy(name: str) -> str:
    """How to get a shipped file back, after a colon."""
    return (
        f"reinstall sdxl-ray, or in a git clone run `git checkout -- sdxl_ray/tiny/{name}`; "
        "`python -m sdxl_ray.tiny._build.build` builds another base"
    )


def write_index(root: Path = ROOT) -> None:
    """Write the index of what `root` holds now; the builder's last step."""
    found = sorted(path for part in LISTED for path in (root / part).rglob("*") if path.is_file())
    named = [path.relative_to(root) for path in found]
    listed = {name.as_posix(): sha256(root / name) for name in named if not name.name.startswith(".")}
    (root / INDEX).write_bytes((json.dumps(listed, indent=1) + "\n").encode())


def _index(root: Path) -> bytes:
    try:
        return (root / INDEX).read_bytes()
    except OSError as error:
        raise UserError(f"the embedded base's {INDEX} is missing ({error.strerror}): {remedy(INDEX)}") from None


def _fault(file: Path, expected: str) -> str | None:
    try:
        found = sha256(file)
    except FileNotFoundError:
        return f"missing (expected SHA-256 {expected})"
    except OSError as error:
        return f"not readable ({error.strerror}; expected SHA-256 {expected})"
    return None if found == expected else f"altered (expected SHA-256 {expected}, found {found})"
