"""One arm in a process of its own: `python arm.py ARM.json RESULT.json`. What goes wrong becomes a result too."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import statistics
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import psutil
from arms import Arm, recipe

#: Seconds between two looks at how much memory is held.
LOOK_S = 0.05


def main() -> None:
    """Run the arm of the first file, write its result to the second."""
    plain = json.loads(Path(sys.argv[1]).read_text())
    limit = plain.pop("memory_limit")
    arm = Arm(**plain)
    folder = Path(sys.argv[1]).parent / "work"  # the parent removes it, however this process ends
    folder.mkdir()
    try:
        _limit(limit, Path(sys.argv[2]))
        result = {"status": "ok", **_summary(arm, _run(arm, folder))}
    except Exception as error:  # whatever it was, the other rows of the table are still wanted
        traceback.print_exc()
        result = {"status": "out of memory" if _no_memory(error) else f"failed: {_line(error)}"}
    Path(sys.argv[2]).write_text(json.dumps(result))


def _run(arm: Arm, folder: Path) -> dict[str, Any]:
    if arm.how == "plain":
        return _plain(arm)
    if arm.how == "engine":
        import engines

        return engines.run(arm, folder)
    return _whole_run(arm, folder)


def _plain(arm: Arm) -> dict[str, Any]:
    started = time.monotonic()
    import plain
    import torch

    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if arm.shape == "tiny" and not arm.name.startswith("gpu-like"):
        from diffusers import StableDiffusionXLPipeline

        from sdxl_ray.tiny import shipped

        pipe = StableDiffusionXLPipeline.from_pretrained(shipped.folder())
    else:
        from randomparts import random_pipeline

        pipe = random_pipeline(arm.shape, device, plain.WIDTHS[arm.precision])
    found = plain.train(arm, pipe, _folder(arm.images))
    # The same measure as ours: of this process, until the last step.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found["peak_bytes"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident
    found["finite"] = all(bool(p.isfinite().all()) for p in pipe.unet.parameters() if p.requires_grad)
    found["start_s"] = time.monotonic() - started - sum(found["seconds"])
    return found


def _folder(images: str) -> Path:
    if not images.startswith("subject:"):
        return Path(images)
    import sdxl_ray

    return Path(sdxl_ray.__file__).parent / "tiny" / "subjects" / images.removeprefix("subject:")


def _whole_run(arm: Arm, folder: Path) -> dict[str, Any]:
    """`launch`, as the command line does it; what is timed comes from the run's own records."""
    started = time.monotonic()
    from sdxl_ray.distributed.train import launch
    from sdxl_ray.io import records

    result = launch(recipe(arm), storage=folder, name="run")
    wall_s = time.monotonic() - started
    steps = records.read(result.folder / "records", "steps").to_pylist()
    return {
        "seconds": [row["seconds"] for row in steps],
        "losses": [row["loss"] for row in steps],
        "finite": True,  # the loop raises at the first loss that is not
        "peak_bytes": steps[-1]["peak_bytes"],
        "trainable": result.summary["trainable"],
        "start_s": wall_s - result.summary["train_s"],
        "device": "cpu" if _cpu_only() else "cuda:0",
    }


def _cpu_only() -> bool:
    import torch

    return not torch.cuda.is_available()


def _summary(arm: Arm, found: dict[str, Any]) -> dict[str, Any]:
    seconds = found.pop("seconds")[arm.warmup :]
    losses = found.pop("losses")
    name = found.pop("device")
    if name.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(0)
    finite = found["finite"] and all(math.isfinite(loss) for loss in losses)
    median = statistics.median(seconds)
    return {**found, "finite": finite, "device": name, "step_s": median, "samples_per_s": arm.batch / median}


def _limit(limit: int | None, result: Path) -> None:
    """Give this process less memory than the machine has, as if it were a smaller one: of its GPU, where it has one."""
    if limit is None:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.get_device_properties(0).total_memory))
    else:
        threading.Thread(target=_watch, args=(limit, result), daemon=True).start()


def _watch(limit: int, result: Path) -> None:
    """End this process as a small machine would: under a limit of the system's, libraries fail in too many ways."""
    this = psutil.Process()
    while _resident(this) <= limit:
        time.sleep(LOOK_S)
    result.write_text(json.dumps({"status": "out of memory"}))
    this.terminate()  # not killed: Ray's processes, where there are some, end with it


def _resident(process: psutil.Process) -> int:
    """Bytes of it and of what it started; what they share counts for each."""
    held = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            held += one.memory_info().rss
    return held


def _no_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory")  # of the CUDA allocator, and of the CPU's
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"


if __name__ == "__main__":
    main()
