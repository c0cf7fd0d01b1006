"""Doctor: what this machine can do, and what is unsafe about it. It reads; it starts and changes nothing.

    for finding in examine(Path("runs")):
        print(finding.state, finding.name, finding.value, finding.fix)

The hub and other machines are not contacted.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sdxl_ray.display.units import bytes_text
from sdxl_ray.errors import UserError
from sdxl_ray.io.storage import Storage, shown
from sdxl_ray.plan.container_memory import container_memory_bytes
from sdxl_ray.tiny import shipped

#: Dependencies whose versions are reported; which ones work is what this project's own metadata requires.
PACKAGES = ("accelerate", "deepspeed", "diffusers", "peft", "Pillow", "pyarrow", "ray", "torch", "transformers")
#: Of these, versions below the range also have a published vulnerability.
UNSAFE_BELOW = frozenset({"diffusers", "Pillow", "ray"})
#: In place of the version of a package that is not there.
MISSING = "missing"

#: Run folders of the embedded base need megabytes; a full SDXL checkpoint with AdamW's state is about 31 GB.
_FULL_CHECKPOINT_BYTES = 31 * 10**9


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    state: ok; note (works, but know this); unsafe (works, but somebody could abuse it); broken (a command will fail).
    fix: what to do about anything but ok.
    """

    name: str
    value: str
    state: Literal["ok", "note", "unsafe", "broken"] = "ok"
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain text fields, for JSON."""
        return asdict(self)


def examine(storage: str | Path, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Everything there is to say about this machine. storage: where runs will be written (need not exist yet).

    Raises UserError for a storage whose address cannot be.
    """
    place = Storage.of(storage)
    return [
        Finding("python", sys.version.split()[0]),
        *packages(),
        *_torch(),
        *_machine(place.root),
        *store(place),
        *_compiler(),
        *embedded_base(),
        ray_authentication(environment),
    ]


def required() -> dict[str, SpecifierSet]:
    """The range of versions of each of PACKAGES; any version where this project runs from a folder, not installed."""
    try:
        lines = metadata.requires("sdxl-ray") or []
    except metadata.PackageNotFoundError:
        lines = []
    named = {one.name: one.specifier for one in map(Requirement, lines) if one.marker is None}
    return {name: named.get(name, SpecifierSet()) for name in PACKAGES}


def packages(ranges: Mapping[str, SpecifierSet] | None = None) -> Iterator[Finding]:
    """One finding for each package of `ranges`. ranges: None for those that this project requires."""
    for name, allowed in (required() if ranges is None else ranges).items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = MISSING
        yield package(name, version, allowed)


def package(name: str, version: str, allowed: SpecifierSet) -> Finding:
    """What there is to say about a version of a package, or about MISSING. allowed: the versions that work."""
    fix = f"pip install '{name}{','.join(sorted(map(str, allowed), reverse=True))}'"
    if version == MISSING:
        return Finding(name, version, "broken", fix)
    if allowed.contains(version, prereleases=True):
        return Finding(name, version)
    caps = [one for one in allowed if one.operator in ("<", "<=")]
    if not all(one.contains(version, prereleases=True) for one in caps):
        return Finding(name, version, "note", f"{fix}: newer ones are not tested")
    unsafe = name in UNSAFE_BELOW
    why = "older ones have known vulnerabilities" if unsafe else "older ones are not tested"
    return Finding(name, version, "unsafe" if unsafe else "broken", f"{fix}: {why}")


def ray_authentication(environment: Mapping[str, str]) -> Finding:
    """Who may run code on a cluster started from this shell. Ray without a token obeys anyone who reaches its port."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode in ("token", "k8s"):
        return Finding("ray authentication", mode)
    return Finding(
        "ray authentication",
        f"RAY_AUTH_MODE={mode}" if mode else "RAY_AUTH_MODE is not set",
        "unsafe",
        "on a shared network: `ray get-auth-token --generate` once, then export RAY_AUTH_MODE=token on every node",
    )


def store(storage: Storage) -> Iterator[Finding]:
    """Whether a store can be read and written, which leaves nothing there; of a folder, what is wrong with it."""
    try:
        storage.require_usable()
    except UserError as error:
        what, _, fix = str(error).rpartition("; ")
        yield Finding("storage", what, "broken", fix)
    else:
        if storage.url is not None:
            yield Finding("storage", f"{shown(storage.url)} answers")


def has_amx_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware; without it, 16 bits are slower than 32."""
    try:
        return "amx_bf16" in cpuinfo.read_text()
    except OSError:
        return False


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways, all of them worth one line
        yield Finding(
            "torch import", f"{type(error).__name__}: {error}".partition("\n")[0], "broken", "reinstall torch"
        )
        return
    cuda = torch.version.cuda or torch.version.hip
    yield Finding("torch build", f"CUDA {cuda}" if cuda else "CPU only")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16: precision fp16"
            yield Finding(f"gpu {index}", f"{card.name}, {bytes_text(card.total_memory)}, {bf16}")
    else:
        driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
        if driver and not cuda:
            yield Finding("gpu", "a driver, but a CPU build of torch", "note", "install torch's CUDA build")
        else:
            yield Finding(
                "gpu", "none: training runs on the CPU; right for the embedded base, hopeless for SDXL", "note"
            )
    yield from _torchvision(str(torch.__version__))


def _torchvision(torch_version: str) -> Iterator[Finding]:
    """Its wheel must have been built for this torch; nothing here needs it, but transformers imports it when it can."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # type: ignore[import-not-found, unused-ignore]  # optional: absent where mypy runs
    except Exception as error:
        yield Finding(
            "torchvision",
            f"does not load with torch {torch_version}: {error}".partition("\n")[0],
            "broken",
            "pip uninstall torchvision (nothing here needs it), or install the build for this torch",
        )
        return
    yield Finding("torchvision", str(torchvision.__version__))


def _machine(storage: Path) -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cpu cores", str(usable))
    memory = psutil.virtual_memory()
    limit = container_memory_bytes()
    inside = f", of which this container may use {bytes_text(limit)}" if limit and limit < memory.total else ""
    yield Finding("memory", f"{bytes_text(memory.total)}, {bytes_text(memory.available)} free{inside}")
    where = storage.absolute()
    while not os.path.exists(where):  # noqa: PTH110  # Path.exists raises for a name too long
        where = where.parent
    free = shutil.disk_usage(where).free
    text = f"{bytes_text(free)} free for {storage}"
    if free < 2 * _FULL_CHECKPOINT_BYTES:
        fix = f"enough for LoRA; full SDXL keeps two checkpoints of {bytes_text(_FULL_CHECKPOINT_BYTES)}: --storage DIR"
        yield Finding("disk", text, "note", fix)
    else:
        yield Finding("disk", text)
    shared = Path("/dev/shm")
    if shared.exists() and (size := shutil.disk_usage(shared).total) < 2**30:
        fix = "Ray's object store and ZeRO-3 use it: start the container with --shm-size=2g or more"
        yield Finding("shared memory", bytes_text(size), "note", fix)


def _compiler() -> Iterator[Finding]:
    """What torch.compile builds its kernels with."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler:
        yield Finding("g++", compiler)
    else:
        fix = "only torch.compile needs it (parallel.compile, engine.compile): apt-get install g++"
        yield Finding("g++", "missing", "note", fix)


def embedded_base(root: Path = shipped.ROOT) -> Iterator[Finding]:
    """Whether the shipped files are whole, and what the base can be asked for. root: the folder of its index."""
    yield _shipped_files(root)
    known = shipped.known()
    yield Finding("tiny draws", ", ".join(known["classes"]))
    yield Finding("tiny places", ", ".join(known["places"]))


def _shipped_files(root: Path) -> Finding:
    name = "embedded base"
    try:
        listed = shipped.files(root)
        faults = {file: fault for part in shipped.LISTED for file, fault in shipped.faults(root / part, root).items()}
    except UserError as error:
        what, _, fix = str(error).partition(": ")
        return Finding(name, what, "broken", fix)
    if faults:
        wrong = ", ".join(f"{file} is {fault}" for file, fault in faults.items())
        return Finding(name, wrong, "broken", shipped.remedy(next(iter(faults))))
    size = sum((root / file).stat().st_size for file in listed)
    return Finding(
        name, f"{len(listed)} files, {bytes_text(size)}, every hash right; revision {shipped.revision(root)[:12]}"
    )


def summary(findings: list[Finding]) -> dict[str, Any]:
    """`{"state": the worst state, "findings": [...]}` for JSON."""
    order = ["ok", "note", "unsafe", "broken"]
    worst = max((finding.state for finding in findings), key=order.index, default="ok")
    return {"state": worst, "findings": [finding.as_dict() for finding in findings]}
