"""Exchange: files that the ranks of a group made, brought to every machine of the group through the storage."""

from __future__ import annotations

from pathlib import Path

from sdxl_ray.io.collectives import Collectives, leads_machine
from sdxl_ray.io.storage import Storage


def exchange(folder: Path, group: Collectives, storage: Storage | None) -> None:
    """Collective. Afterwards every rank sees the files of `folder` that any rank had; they must never change.

    Where every rank sees the folder anyway, this is a barrier. Hidden files are not finished, and stay where they are.
    """
    group.barrier()
    if storage is None or storage.url is None:
        return
    leader = leads_machine(group, storage.root)
    if leader:
        storage.put_missing(folder)
    group.barrier()
    if leader:
        storage.get_missing(folder)
    group.barrier()
