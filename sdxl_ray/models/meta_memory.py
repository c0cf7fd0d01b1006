"""Bytes that a forward and backward keep alive, on the meta device: nothing is computed, every allocation is seen.

Attention is followed as a GPU (and PyTorch's CPU kernel) runs it: flash attention keeps q, k, v, the output and one
log-sum-exp a row, never the matrix of scores (arXiv 2307.08691).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Flash(torch.autograd.Function):
    """The memory of flash attention, without its arithmetic. q [B, H, S, D], k and v [B, H, T, D] -> [B, H, S, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        log_sum = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, _ = ctx.saved_tensors
        # The GPU kernel sums dq over blocks of keys in fp32.
        accumulator = torch.empty_like(q, dtype=torch.float32) if q.element_size() < 4 else None
        found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        del accumulator
        return found


class FlashAttention(TorchFunctionMode):
    """Inside, `scaled_dot_product_attention` has the memory of flash attention and no arithmetic."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = dict(kwargs or {})
            q, k, v = (*args, *(named[name] for name in ("query", "key", "value") if name in named))[:3]
            return _Flash.apply(q, k, v)  # type: ignore[no-untyped-call]  # torch's own gap
        return func(*args, **(kwargs or {}))


def same_attention() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a checkpointed forward and its recomputation, which autograd runs outside of the first's modes."""
    inside = any(isinstance(mode, FlashAttention) for mode in _get_current_function_mode_stack())
    return nullcontext(), FlashAttention() if inside else nullcontext()


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make until they die; `known` (weights, inputs) are not counted."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own gap
        self._known = [tensor.untyped_storage() for tensor in known]
        self._seen: dict[int, Any] = {storage._cdata: None for storage in self._known}
        self.live = 0
        self.peak = 0

    def since(self) -> int:
        """The most bytes alive at once since the last call."""
        peak, self.peak = self.peak, self.live
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        identity, size = storage._cdata, storage.nbytes()
        if identity in self._seen:
            return

        def gone(_: Any) -> None:
            del self._seen[identity]
            self.live -= size

        self._seen[identity] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def forward_bytes(known: Iterable[Tensor], forward: Callable[[], object]) -> int:
    """Peak bytes of a forward without gradients."""
    tracker = LiveBytes(known)
    with torch.no_grad(), FlashAttention(), tracker:
        forward()
    return tracker.peak


def training_bytes(
    module: torch.nn.Module, known: Iterable[Tensor], forward: Callable[[], Tensor], group: Callable[[str], str]
) -> list[tuple[int, int]]:
    """Peaks of a forward and backward as (scalars with a gradient so far, live bytes), one per group of parameters.

    A parameter's own gradient is given up as soon as it exists, so the bytes are of activations and workspace alone.
    group: parameter name -> a stretch of the network; a stretch's entry has its largest peak and its final count.
    """
    tracker = LiveBytes([*known, *module.parameters(), *module.buffers()])
    done = 0
    found: list[tuple[int, int]] = []
    current: list[str] = []

    def arrived(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            nonlocal done
            done += parameter.numel()
            parameter.grad = None
            peak = tracker.since()
            if current and current[0] == group(name):
                found[-1] = (done, max(found[-1][1], peak))
            else:
                current[:] = [group(name)]
                found.append((done, peak))

        return hook

    hooks = [p.register_post_accumulate_grad_hook(arrived(n)) for n, p in module.named_parameters() if p.requires_grad]
    try:
        with FlashAttention(), tracker:
            out = forward()
            gradient = torch.empty_like(out)
            torch.autograd.backward([out], [gradient])
    finally:
        for hook in hooks:
            hook.remove()
    return found
