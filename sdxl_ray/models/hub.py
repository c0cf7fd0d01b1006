"""The Hugging Face hub: pinned commits only, safetensors and text only, and one line when it cannot be reached."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sdxl_ray.errors import UserError

_PROBE_SECONDS = 10


def is_id(name: str) -> bool:
    """True when `name` is spelled like OWNER/NAME of the hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def require_commit(field: str, name: str, revision: str | None) -> str:
    """The 40-hex commit, or UserError: a branch or tag can change under a run that is to be repeated."""
    key = "base.revision" if field == "base" else f"{field}_revision"
    if revision is None:
        raise UserError(f"{field} {name!r} is no folder here, and as a hub id it needs {key}=COMMIT (40 hex digits)")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(f"{key} = {revision!r} can move: give the commit it stands for, 40 hex digits")
    return revision


def snapshot(field: str, name: str, commit: str, patterns: Sequence[str], check: Callable[[Path], None]) -> Path:
    """The folder of a commit, downloaded unless it is complete already (`check` passes); then no request is made.

    Raises UserError: unknown, gated, unreachable (after about 10 s), or what `check` finds wrong.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    incomplete: UserError | None = None
    try:
        kept = Path(snapshot_download(name, revision=commit, local_files_only=True))
        check(kept)
        return kept
    except LocalEntryNotFoundError:
        pass
    except UserError as error:
        incomplete = error
    try:
        present = _probe(field, name, commit)
    except UserError as unreachable:
        raise incomplete or unreachable from None
    try:
        folder = snapshot_download(
            name, revision=commit, allow_patterns=list(patterns), ignore_patterns=half_precision_twins(present)
        )
    except Exception as error:  # as in _probe, and a full disk
        raise UserError(
            f"{field} {name!r}: the download broke off ({_short(error)}); start again to continue"
        ) from None
    check(Path(folder))
    return Path(folder)


def _probe(field: str, name: str, commit: str) -> list[str]:
    """File names of the commit in one bounded request; the downloader itself would retry for half a minute."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    way_out = f"give {field}=FOLDER (a local copy)" + (" or base=tiny" if field == "base" else "")
    if constants.is_offline_mode():
        raise UserError(
            f"{field} {name!r} at {commit[:8]} is not in the hub's cache and HF_HUB_OFFLINE is set: {way_out}"
        )
    try:
        info = HfApi().model_info(name, revision=commit, timeout=_PROBE_SECONDS)
    except GatedRepoError:
        raise UserError(
            f"{field} {name!r} is gated: accept its licence on the hub and set HF_TOKEN, or {way_out}"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{field} {name!r} has no commit {commit}: look it up on the hub's page, or {way_out}"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"{field} {name!r} is not on the hub, or is private and needs HF_TOKEN: {way_out}") from None
    except Exception as error:  # which HTTP library raises depends on the version of huggingface_hub
        raise UserError(f"{field} {name!r}: the hub cannot be reached ({_short(error)}): {way_out}") from None
    return [file.rfilename for file in info.siblings or []]


def half_precision_twins(present: list[str]) -> list[str]:
    """Files that repeat another one in half precision (5 GB of SDXL base), which are not worth downloading."""
    return [file for file in present if (plain := re.sub(r"\.fp16(?=[.-])", "", file)) != file and plain in present]


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
