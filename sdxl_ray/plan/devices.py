"""Devices a plan can be made for: memory, peak arithmetic and bandwidths as the vendors' data sheets give them.

Sources: NVIDIA's data sheets of H200 SXM, H100 SXM, A100 (40 GB and 80 GB SXM), L40S, L4, A10G (of AWS G5), T4, V100
and RTX A6000; NVIDIA's Ada and Ampere GPU architecture white papers for the RTX cards (dense, fp32 accumulation).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from sdxl_ray.errors import UserError, nearest
from sdxl_ray.plan.gpu_driver import Gpu

GIB = 1024**3


@dataclass(frozen=True)
class Device:
    """One GPU, or one CPU process.

    memory_bytes: what CUDA can allocate, a little less than what the box says. teraflops: dense 16-bit tensor
    arithmetic. bandwidth: of memory, GB/s. link: between two devices, GB/s one way. bf16: whether it has it (a CPU:
    AMX). assumed: what of these is another card's. shared: all workers are on this one machine and share its memory.
    """

    name: str
    memory_bytes: int
    teraflops: float
    bandwidth: float
    link: float
    bf16: bool = True
    kind: Literal["gpu", "cpu"] = "gpu"
    assumed: str = ""
    shared: bool = False

    def limit_bytes(self, workers: int) -> int:
        """What each of so many workers may have."""
        return self.memory_bytes // workers if self.shared else self.memory_bytes


def _gpu(name: str, gib: float, teraflops: float, bandwidth: float, *, link: float = 20.0, bf16: bool = True) -> Device:
    return Device(name, round(gib * GIB), teraflops, bandwidth, link, bf16)


#: In order of memory. A PCIe card's link is PCIe 4.0 x16 in practice, 20 GB/s; NVLink is half its two-way sum.
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("t4", 14.6, 65, 320, link=10, bf16=False),
        _gpu("4060ti-16", 15.6, 88, 288, link=10),
        _gpu("4080", 15.6, 97, 717),
        _gpu("v100-16", 15.8, 125, 900, link=150, bf16=False),
        _gpu("a10g", 22.0, 70, 600),
        _gpu("l4", 22.0, 121, 300),
        _gpu("4090", 23.5, 165, 1008),
        _gpu("3090", 23.6, 71, 936),
        _gpu("5090", 31.3, 210, 1792),
        _gpu("v100-32", 31.7, 125, 900, link=150, bf16=False),
        _gpu("a100-40", 39.4, 312, 1555, link=300),
        _gpu("l40s", 44.4, 362, 864),
        _gpu("a6000", 47.5, 155, 768),
        _gpu("a100-80", 79.1, 312, 2039, link=300),
        _gpu("h100", 79.1, 989, 3352, link=450),
        _gpu("h200", 139.7, 989, 4800, link=450),
    )
}

#: One process on one or two cores of a server; its memory is not checked.
CPU = Device("cpu", 2**62, 0.05, 20, 5, bf16=False, kind="cpu")


def device(name: str | None = None, memory: str | None = None) -> Device:
    """A device by name (`h100`, `cpu`), or one of that memory (`24GiB`, `24GB`, `24`: GiB) with modest arithmetic.

    Both together: the named one with another memory. Raises UserError for an unknown name or no amount.
    """
    if name is None and memory is None:
        raise UserError("no device: give --gpu (for example h100) or --gpu-memory (for example 24GiB)")
    if name is not None:
        word = name.lower().removeprefix("rtx").strip(" -_")
        if word != "cpu" and word not in DEVICES:
            raise UserError(f"no GPU {name!r}: {nearest(word, [*DEVICES, 'cpu'])}, or give --gpu-memory")
        found = CPU if word == "cpu" else DEVICES[word]
        return replace(found, memory_bytes=memory_bytes(memory)) if memory is not None else found
    assert memory is not None
    size = memory_bytes(memory)
    # Arithmetic of the slowest known card that has bf16 and as much memory: a time that is not too good to be true.
    like = [d for d in DEVICES.values() if d.bf16 and d.memory_bytes >= 0.9 * size] or [DEVICES["h200"]]
    slow = min(like, key=lambda d: d.teraflops)
    assumed = f"the arithmetic and bandwidth of a {slow.name}, the slowest known GPU with as much memory"
    return replace(slow, name=f"gpu-{size / GIB:.3g}gib", memory_bytes=size, assumed=assumed)


def card(gpu: Gpu) -> Device:
    """The device that a driver names: the known card, or one of that memory whose arithmetic is assumed."""
    known = [like for like in DEVICES.values() if _is(gpu, like)]
    if known:
        return replace(known[0], name=gpu.name)
    return replace(device(memory=f"{gpu.memory_mib}MiB"), name=gpu.name)


def _is(gpu: Gpu, like: Device) -> bool:
    # "NVIDIA GeForce RTX 4060 Ti" has the words geforce, 4060ti; a laptop's or PCIe card is another than those known.
    words = re.split(r"[\s-]+", re.sub(r"\s(ti|super)\b", r"\1", gpu.name.lower()))
    whole = gpu.memory_mib * 1024**2
    same = like.name.partition("-")[0] in words and like.memory_bytes <= whole <= 1.12 * like.memory_bytes
    return same and not {"laptop", "max", "pcie", "nvl", "ada", "mig", "d"} & set(words)


def memory_bytes(text: str) -> int:
    """`24GiB`, `24 GB`, `24576MiB` or `24` (GiB) in bytes. Raises UserError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gib|gb|g|mib|mb|tib|tb)?\s*", str(text).lower())
    units = {"gib": GIB, "g": GIB, "gb": 10**9, "mib": 1024**2, "mb": 10**6, "tib": 1024**4, "tb": 10**12}
    size = round(float(match[1]) * units[match[2] or "gib"]) if match else 0
    if size < 1:
        raise UserError(f"GPU memory {text!r} is not an amount: write 24GiB, 24GB or 24 (GiB)")
    return size
