"""Every use of what DeepSpeed does not document: private names, and attributes without an accessor.

pyproject.toml caps DeepSpeed at the next minor version. `tests/distributed/test_deepspeed_private.py` builds engines
and fails when something that is used here has changed: check the function, then raise the cap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed.ops
import torch
from torch import Tensor, nn


def skip_shm_op() -> None:
    """Keep DeepSpeed from compiling a reduction for tensor-parallel inference (45 s, with g++) that no stage calls.

    Private: the build variables (DS_BUILD_...) act on installation, not on what is compiled at run time.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def shard(parameter: nn.Parameter) -> Tensor:
    """This rank's partition of a parameter under ZeRO-3: flat, padded to one size on all ranks, in memory.

    Private: the public accessors return the fp32 master of a partition, not the partition that the forward uses.
    """
    found: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]  # set by ZeRO-3
    return found


def unpadded(parameter: nn.Parameter, flat: Tensor) -> Tensor:
    """The partitions of all ranks, one after another in `flat`, as the whole parameter: without padding, in its shape.

    Private: a parameter under ZeRO-3 has an empty shape while it is not gathered.
    """
    return flat[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]  # set by ZeRO-3


def gather_persistent(optimizer: Any) -> None:
    """Gather the whole copy that ZeRO-3 keeps of small parameters from their partitions again.

    Private: DeepSpeed does this itself after it has loaded a checkpoint of its own, and has no call for it.
    """
    persistent = optimizer.persistent_parameters
    if persistent:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)


@contextmanager
def filled_groups(optimizer: Any) -> Iterator[None]:
    """Inside, the groups of ZeRO-3's torch optimizer name the flat partitions, as they do during a step.

    Private: between steps DeepSpeed empties the groups, and the torch optimizer's `state_dict` would be empty too.
    """
    optimizer._set_fp32_optimizer_param_groups()
    try:
        yield
    finally:
        optimizer._clear_fp32_optimizer_param_groups()


def link_moments(optimizer: Any) -> None:
    """Let DeepSpeed's accessors find the moments of all parameter groups of ZeRO 1 and 2.

    Private: DeepSpeed links them by itself after the first group's step, when the second group's do not exist yet, and
    has no call to link them again.
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def stepping_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer that steps: the client's own, which DeepSpeed has given its flat partitions.

    Private: `engine.optimizer` is DeepSpeed's wrapper around it, except at stage 0.
    """
    optimizer: torch.optim.Optimizer = engine.basic_optimizer
    return optimizer


def loss_scaler(engine: Any) -> Any | None:
    """The loss scaler of an engine (`dynamic`, `cur_scale` and counters); None at stage 0.

    Private: the public `loss_scale` is the number alone; a run that resumes needs the counters too.
    """
    return getattr(engine.optimizer, "loss_scaler", None)
