"""A training state as files, free of the number of workers, of the ZeRO stage and of code.

Tensors are safetensors; `rest-*.pt` holds a few counters, a pickle that torch reads with `weights_only`.
Each parameter is gathered in turn (so memory holds one at a time) and kept by one rank, which writes it whole: its
master weight, its moments, its average. Reading copies each rank's part out of the whole.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdxl_ray.errors import RunError, UserError
from sdxl_ray.training.checkpoint import CheckpointInfo
from sdxl_ray.training.ema import Ema
from sdxl_ray.training.engine import MOMENTS, TrainingEngine

_AVERAGE = "average"


@torch.no_grad()
def write_state(engine: TrainingEngine, ema: Ema | None, folder: Path) -> list[Path]:
    """Collective. Write this rank's share of the state into `folder`; the files written."""
    rank, world = engine.group.rank, engine.group.world
    mine: dict[str, Tensor] = {}
    for i, (name, p) in enumerate(engine.trainable.named):
        state = engine.state(p)
        if ema is not None:
            state[_AVERAGE] = engine.full(p, ema.averages[i])
        if i % world == rank:
            # A copy on the CPU: the gathered tensor is a buffer that the next gather may use again.
            mine |= {f"{kind}|{name}": v.detach().to("cpu", copy=True).contiguous() for kind, v in state.items()}
    tensors, rest = folder / f"state-{rank:05d}.safetensors", folder / f"rest-{rank:05d}.pt"
    save_file(mine, tensors)
    # Through memory, since torch reports a full disk as an internal error; the file itself says what is wrong.
    packed = io.BytesIO()
    torch.save(engine.opaque_state(), packed)
    rest.write_bytes(packed.getbuffer())
    return [tensors, rest]


@torch.no_grad()
def read_state(engine: TrainingEngine, ema: Ema | None, info: CheckpointInfo) -> None:
    """Collective. Put a checkpoint's state into an engine with any number of workers.

    Raises UserError when the optimizer's state is laid out for another number of workers and cannot be cut anew.
    """
    engine.load_opaque(_read_rest(engine, info))
    with _Reader(info) as reader:
        for i, (name, p) in enumerate(engine.trainable.named):
            kinds = ["weight", *MOMENTS]
            state = {kind: reader[f"{kind}|{name}"] for kind in kinds if f"{kind}|{name}" in reader}
            engine.load(p, state)
            if ema is not None:
                average = reader[f"{_AVERAGE}|{name}"].to(engine.device)
                ema.averages[i].copy_(engine.part(p, average))
    engine.refresh()


def _read_rest(engine: TrainingEngine, info: CheckpointInfo) -> dict[str, Any]:
    same = engine.group.world == info.world
    name = f"rest-{engine.group.rank if same else 0:05d}.pt"
    path = next((path for path in info.files if path.name == name), None)
    if path is None:
        raise RunError(f"checkpoint {str(info.folder)!r} does not name {name}: remove that folder and start again")
    # weights_only: tensors and plain numbers, no code; and the store has checked the file's hash.
    try:
        rest: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise RunError(
            f"{str(path)!r} holds more than tensors and numbers: it was not written by this program"
        ) from None
    if not same and "step" not in rest["optimizer"]:
        raise UserError(
            f"this optimizer's state was saved by {info.world} workers and cannot be cut for {engine.group.world}: "
            f"set parallel.workers={info.world}, or use optim.name=adamw, which goes on with any number"
        )
    return rest


class _Reader:
    """All tensors of a checkpoint's safetensors files by name, read when asked for."""

    def __init__(self, info: CheckpointInfo) -> None:
        self._paths = [path for path in info.files if path.suffix == ".safetensors"]

    def __enter__(self) -> _Reader:
        self._files = [safe_open(path, framework="pt") for path in self._paths]
        self._where = {key: file for file in self._files for key in file.keys()}  # noqa: SIM118  # not a mapping
        return self

    def __exit__(self, *_: object) -> None:
        self._where.clear()
        self._files.clear()

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._where[key].get_tensor(key)
        return tensor
