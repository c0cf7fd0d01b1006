"""ZeroEngine: DeepSpeed ZeRO 0-3 behind the `TrainingEngine` that the training loop knows (arXiv 1910.02054).

State leaves and enters as full tensors per parameter, through DeepSpeed's public accessors, so a checkpoint fits any
number of workers and any stage. `_deepspeed_private` has what the accessors lack. One thing is done here: putting a
rank's slice into a padded ZeRO-3 partition.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from sdxl_ray.config.schema import Optim, Parallel
from sdxl_ray.distributed import _deepspeed_private
from sdxl_ray.io.collectives import Collectives
from sdxl_ray.models.adapters import Trainable
from sdxl_ray.models.denoiser import Denoiser
from sdxl_ray.plan.memory import zero_settings
from sdxl_ray.training.engine import MOMENTS, EngineState, hold_masters, load_optimizer_rest, optimizer_rest
from sdxl_ray.training.optim import build_optimizer

_deepspeed_private.skip_shm_op()


def deepspeed_config(
    parallel: Parallel,
    optim: Optim,
    *,
    stage: int,
    trained: int,
    micro_batch: int,
    accumulation: int,
    world: int,
    precision: torch.dtype,
) -> dict[str, Any]:
    """The DeepSpeed configuration of a run (https://www.deepspeed.ai/docs/config-json).

    `trained` parameters size the communication buffers, as the plan counts them: the defaults take 1 GB for any LoRA.
    """
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True}
    zero |= zero_settings(trained, stage)
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if parallel.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {
        "train_batch_size": micro_batch * accumulation * world,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optim.max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW steps offloaded state too; DeepSpeed's own would need a compiler on every node.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if stage == 0 and precision != torch.float32:
        # Stage 0 keeps fp32 weights whole, as plain data parallelism does; its forward runs under autocast.
        config["torch_autocast"] = {"enabled": True, "dtype": str(precision).removeprefix("torch.")}
    elif precision == torch.bfloat16:
        config["bf16"] = {"enabled": True}
    elif precision == torch.float16:
        config["fp16"] = {"enabled": True, "initial_scale_power": 14}
    return config


class ZeroEngine:
    """A denoiser under DeepSpeed. Every rank of the group builds one with the same arguments."""

    def __init__(
        self,
        denoiser: Denoiser,
        trainable: Trainable,
        optim: Optim,
        parallel: Parallel,
        *,
        stage: int,
        micro_batch: int,
        accumulation: int,
        device: torch.device,
        precision: torch.dtype,
        group: Collectives,
    ) -> None:
        self.denoiser, self.trainable, self.group = denoiser, trainable, group
        self.device, self.accumulation, self.precision = device, accumulation, precision
        self._stage, self._micro, self._linked = stage, 0, False
        self._norm: Any = None  # perhaps a tensor of the device: reading it would wait for the step
        if self._stage == 0:
            hold_masters(denoiser)
        optimizer = build_optimizer(optim, trainable)
        self._base_lr = [group["lr"] for group in optimizer.param_groups]
        config = deepspeed_config(
            parallel,
            optim,
            stage=stage,
            trained=trainable.count,
            micro_batch=micro_batch,
            accumulation=accumulation,
            world=group.world,
            precision=precision,
        )
        self._engine, _, _, _ = deepspeed.initialize(model=denoiser, optimizer=optimizer, config=config)

    def __call__(self, *inputs: Any) -> Tensor:
        prediction: Tensor = self._engine(*inputs)
        return prediction

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> bool:
        self._micro += 1
        last = self._micro == self.accumulation
        if last and self._stage == 0:
            grads = [p.grad for _, p in self.trainable.named if p.grad is not None]
            self._norm = nn.utils.get_total_norm(grads)
        self._engine.step()
        if not last:
            return False
        self._micro = 0
        if self._stage > 0:
            self._norm = self._engine.get_global_grad_norm()
        moved = bool(self._engine.was_step_applied())
        if moved and not self._linked:
            self._link_moments()
        return moved

    def hopeless(self) -> bool:
        scaler = _deepspeed_private.loss_scaler(self._engine)
        return scaler is None or not scaler.dynamic or float(scaler.cur_scale) <= 1

    def set_lr(self, multiplier: float) -> None:
        for group, lr in zip(self._engine.optimizer.param_groups, self._base_lr, strict=True):
            group["lr"] = lr * multiplier

    def grad_norm(self) -> float:
        return float(self._norm or 0.0)

    def local(self, parameter: nn.Parameter) -> Tensor:
        return _deepspeed_private.shard(parameter) if self._stage == 3 else parameter.data

    def full(self, parameter: nn.Parameter, local: Tensor) -> Tensor:
        if self._stage != 3:
            return local
        local = local.to(self.device).flatten()
        whole = torch.empty(local.numel() * self.group.world, dtype=local.dtype, device=self.device)
        dist.all_gather_into_tensor(whole, local)
        return _deepspeed_private.unpadded(parameter, whole)

    def part(self, parameter: nn.Parameter, full: Tensor) -> Tensor:
        if self._stage != 3:
            return full
        size = self.local(parameter).numel()
        padded = full.new_zeros(size * self.group.world)  # the last ranks' partitions end in padding
        padded[: full.numel()] = full.flatten()
        return padded[size * self.group.rank : size * (self.group.rank + 1)]

    def refresh(self) -> None:
        if self._stage == 3:
            _deepspeed_private.gather_persistent(self._engine.optimizer)

    def whole(self) -> AbstractContextManager[None]:
        if self._stage != 3:
            return nullcontext()
        gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(self.denoiser.parameters()))
        return gathered

    def state(self, parameter: nn.Parameter) -> EngineState:
        if self._stage == 0:
            moments = self._torch_optimizer.state.get(parameter, {})
            return {"weight": parameter.data, **{name: moments[name] for name in MOMENTS if name in moments}}
        state = {"weight": safe_get_full_fp32_param(parameter)}
        if self._has_moments:
            state |= {name: safe_get_full_optimizer_state(parameter, name).clone() for name in MOMENTS}
        return state

    def load(self, parameter: nn.Parameter, state: EngineState) -> None:
        values = {name: value.to(self.device) for name, value in state.items()}
        weight = values.pop("weight")
        self.local(parameter).copy_(self.part(parameter, weight))
        if self._stage == 0:
            for name, value in values.items():
                self._torch_optimizer.state[parameter][name].copy_(value)
        elif self._stage == 3:
            safe_set_local_fp32_param(parameter, self.part(parameter, weight.float()))
            for name, value in values.items():
                safe_set_local_optimizer_state(parameter, self.part(parameter, value), name)
        else:
            safe_set_full_fp32_param(parameter, weight)
            for name, value in values.items():
                safe_set_full_optimizer_state(parameter, value, name)

    def opaque_state(self) -> dict[str, Any]:
        with self._stepped_parameters():
            return {"scaler": self._scaler(), "optimizer": optimizer_rest(self._torch_optimizer)}

    def load_opaque(self, state: dict[str, Any]) -> None:
        with self._stepped_parameters():
            load_optimizer_rest(self._torch_optimizer, state["optimizer"])
        self._link_moments()
        scaler = _deepspeed_private.loss_scaler(self._engine)
        for name, value in state["scaler"].items():
            if hasattr(scaler, name):  # not of torch's scaler, whose run goes on under ZeRO with a fresh one
                setattr(scaler, name, value)

    def _stepped_parameters(self) -> AbstractContextManager[None]:
        """Inside, the torch optimizer's groups name the flat partitions; ZeRO-3 fills them for a step only."""
        return _deepspeed_private.filled_groups(self._engine.optimizer) if self._stage == 3 else nullcontext()

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return _deepspeed_private.stepping_optimizer(self._engine)

    @property
    def _has_moments(self) -> bool:
        return isinstance(self._torch_optimizer, torch.optim.AdamW) and any(self._torch_optimizer.state.values())

    def _link_moments(self) -> None:
        """Let DeepSpeed's accessors find the moments of ZeRO 1 and 2, once there are any."""
        if self._stage in (1, 2) and self._has_moments:
            _deepspeed_private.link_moments(self._engine.optimizer)
        self._linked = True

    def _scaler(self) -> dict[str, Any]:
        """The counters of a dynamic loss scaler; empty for fp32 and bf16."""
        scaler = _deepspeed_private.loss_scaler(self._engine)
        if scaler is None or not getattr(scaler, "dynamic", False):
            return {}
        return {name: value for name, value in vars(scaler).items() if isinstance(value, int | float)}
