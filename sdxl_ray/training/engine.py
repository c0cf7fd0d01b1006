"""Engine: what the training loop needs from whoever holds the weights, and the engine of a single process.

`ZeroEngine` (DeepSpeed under Ray Train) is in `distributed/`; the loop cannot tell them apart. A tensor that belongs to
a parameter has two forms: *local*, what this rank stores, and *full*, the parameter's own shape. Only ZeRO-3 makes them
differ for weights, but any ZeRO stage does for optimizer state.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sdxl_ray.config.schema import Optim
from sdxl_ray.io.collectives import Collectives, SingleProcess
from sdxl_ray.models.adapters import Trainable
from sdxl_ray.models.denoiser import Denoiser
from sdxl_ray.training.optim import build_optimizer

EngineState = dict[str, Tensor]


class TrainingEngine(Protocol):
    """Forward, backward and step over a denoiser, and access to its state in a form free of world size."""

    denoiser: Denoiser
    trainable: Trainable
    group: Collectives
    device: torch.device
    accumulation: int
    precision: torch.dtype

    def __call__(self, *inputs: Any) -> Tensor:
        """The denoiser's forward in the run's precision."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of a micro-batch; the mean over accumulation and workers is the step's gradient."""

    def step(self) -> bool:
        """Call after each backward; True when the weights moved (last micro-batch, no overflow)."""

    def hopeless(self) -> bool:
        """After a step that did not move: no lower loss scale can help it."""

    def set_lr(self, multiplier: float) -> None:
        """Scale each group's learning rate for the coming step."""

    def grad_norm(self) -> float:
        """Global gradient norm of the last step, before clipping."""

    def local(self, parameter: nn.Parameter) -> Tensor:
        """This rank's storage of a weight (a view, in the precision of the forward)."""

    def full(self, parameter: nn.Parameter, local: Tensor) -> Tensor:
        """Collective: a tensor laid out like `local(parameter)`, made whole."""

    def part(self, parameter: nn.Parameter, full: Tensor) -> Tensor:
        """The inverse of `full`: this rank's part."""

    def refresh(self) -> None:
        """Collective. Call after writing into `local` storage, before the next forward."""

    def whole(self) -> AbstractContextManager[None]:
        """Collective: inside, every parameter has its full value."""

    def state(self, parameter: nn.Parameter) -> EngineState:
        """Collective: `weight` (master precision) and the optimizer's moments of one parameter, full."""

    def load(self, parameter: nn.Parameter, state: EngineState) -> None:
        """The inverse of `state`, from full tensors."""

    def opaque_state(self) -> dict[str, Any]:
        """What `state` cannot express: step counters, loss scale, states of optimizers that are not elementwise."""

    def load_opaque(self, state: dict[str, Any]) -> None:
        """The inverse of `opaque_state`; call before `load`: it makes the moments that `load` then fills."""


class LocalEngine:
    """One process, one device: plain PyTorch with automatic mixed precision."""

    def __init__(
        self,
        denoiser: Denoiser,
        trainable: Trainable,
        optim: Optim,
        *,
        accumulation: int,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        hold_masters(denoiser)
        self.denoiser, self.trainable = denoiser.to(device), trainable
        self.group: Collectives = SingleProcess()
        self.device, self.accumulation, self.precision = device, accumulation, precision
        self._optimizer = build_optimizer(optim, trainable)
        self._base_lr = [group["lr"] for group in self._optimizer.param_groups]
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self._clip, self._micro = optim.max_grad_norm, 0
        self._norm: Tensor | float = 0.0  # on the device: reading it would wait for the step

    def __call__(self, *inputs: Any) -> Tensor:
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            prediction: Tensor = self.denoiser(*inputs)
        return prediction

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss / self.accumulation).backward()

    def step(self) -> bool:
        self._micro += 1
        if self._micro < self.accumulation:
            return False
        self._micro = 0
        self.mean_gradients()
        self._scaler.unscale_(self._optimizer)
        parameters = [p for _, p in self.trainable.named]
        self._norm = nn.utils.clip_grad_norm_(parameters, self._clip or float("inf"))
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return self._scaler.get_scale() >= scale

    def mean_gradients(self) -> None:
        """Before a step: gradients of one process are whole."""

    def hopeless(self) -> bool:
        return self._scaler.get_scale() < 1e-4

    def set_lr(self, multiplier: float) -> None:
        for group, lr in zip(self._optimizer.param_groups, self._base_lr, strict=True):
            group["lr"] = lr * multiplier

    def grad_norm(self) -> float:
        return float(self._norm)

    def local(self, parameter: nn.Parameter) -> Tensor:
        return parameter.data

    def full(self, parameter: nn.Parameter, local: Tensor) -> Tensor:
        return local

    def part(self, parameter: nn.Parameter, full: Tensor) -> Tensor:
        return full

    def refresh(self) -> None:
        """Local storage is the weight itself."""

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def state(self, parameter: nn.Parameter) -> EngineState:
        moments = self._optimizer.state.get(parameter, {})
        return {"weight": parameter.data, **{name: moments[name] for name in MOMENTS if name in moments}}

    def load(self, parameter: nn.Parameter, state: EngineState) -> None:
        parameter.data.copy_(state["weight"])
        for name in MOMENTS:
            if name in state:
                self._optimizer.state[parameter][name].copy_(state[name])

    def opaque_state(self) -> dict[str, Any]:
        return {"scaler": self._scaler.state_dict(), "optimizer": optimizer_rest(self._optimizer)}

    def load_opaque(self, state: dict[str, Any]) -> None:
        if self._scaler.is_enabled() and "scale" in state["scaler"]:  # not of DeepSpeed's scaler, which starts anew
            self._scaler.load_state_dict(state["scaler"])
        load_optimizer_rest(self._optimizer, state["optimizer"])


def hold_masters(denoiser: Denoiser) -> None:
    """Make what trains fp32, for engines that step the weights themselves and compute under autocast.

    A model that trains as a whole is converted as a whole: on a CPU, layers do not mix dtypes. Under adapters the
    frozen base keeps its dtype.
    """
    for model in denoiser.children():
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not all("lora_" in name for name in trained):
            model.float()
        for p in trained.values():
            p.data = p.data.float()


#: AdamW's moments: one number per weight each, so they can be gathered whole and laid out for any number of workers.
MOMENTS = ("exp_avg", "exp_avg_sq")


def optimizer_rest(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """AdamW: its step counter (the moments travel per parameter). Another: its whole state, as it lies here."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return optimizer.state_dict()
    return {"step": max((float(state["step"]) for state in optimizer.state.values() if state), default=0.0)}


def load_optimizer_rest(optimizer: torch.optim.Optimizer, rest: dict[str, Any]) -> None:
    """The inverse of `optimizer_rest`; for AdamW it makes zero moments of the optimizer's own layout."""
    if not isinstance(optimizer, torch.optim.AdamW):
        optimizer.load_state_dict(rest)
    elif rest["step"] > 0:
        for group in optimizer.param_groups:
            for p in group["params"]:
                zeros = {name: torch.zeros_like(p, memory_format=torch.preserve_format) for name in MOMENTS}
                # The fused kernel reads its counter on the weights' own device.
                step = torch.tensor(rest["step"], device=p.device if group.get("fused") else "cpu")
                optimizer.state[p] = {"step": step, **zeros}
