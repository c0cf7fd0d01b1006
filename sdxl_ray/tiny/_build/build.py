"""Builds the embedded base anew: data, autoencoder, encoders, UNet.

    python -m sdxl_ray.tiny._build.build --minutes 90                 # on the CPU: two stages at a time, one core each
    python -m sdxl_ray.tiny._build.build --minutes 10 --device cuda
    python -m sdxl_ray.tiny._build.build --minutes 30 --only identity # trains one part further and replaces that one alone

Fetches the image sets with npm (about 30 MB), trains for the given time, writes the weights into the package and
measures the card. Interrupted, it goes on where it was, if it is given the same `--minutes` (the learning rate follows
the time). Needs the extra `tiny-build` (resvg_py).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sdxl_ray.cache_folder import cache_root

_SCENES = 40_000


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m sdxl_ray.tiny._build.build", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=90.0, help="wall time in all (default: 90)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--scenes", type=int, default=_SCENES, help=f"training scenes (default: {_SCENES})")
    parser.add_argument("--work", type=Path, default=cache_root() / "tiny-build", help="where states are kept")
    parser.add_argument("--stage", help="run this stage only, in this process")
    parser.add_argument(
        "--only", choices=("base", "identity", "vision"), help="train this part of what is shipped further"
    )
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit runs what is under `finally`, a signal does not
    if given.only and not given.stage:
        given.work /= f"only-{given.only}"  # its states are not those of a whole build
    given.work.mkdir(parents=True, exist_ok=True)
    if given.stage:
        run_stage(given)
        return
    if given.only:
        run_only(given)
        return
    run_all(given)
    write(given)
    # By itself, because the card is measured with the pipeline, which stands above this floor.
    card = [sys.executable, "-m", "sdxl_ray.tiny._build.card", "--work", str(given.work / "card")]
    subprocess.run(card, check=True)


def run_only(given: Any) -> None:
    """Train one part from what is shipped, all minutes and cores for itself, and put it in place."""
    from sdxl_ray.tiny import shipped
    from sdxl_ray.tiny._build import reuse
    from sdxl_ray.tiny._build.stages import StageJob

    job = StageJob(given.work, given.device, given.minutes, given.scenes)
    steps = reuse.STAGES[given.only]
    if not any((given.work / step.leaves).is_file() for step in steps.values()):
        reuse.lay_out(job, given.only)
    for name, step in steps.items():
        if not (given.work / step.leaves).is_file():
            stage = Running(given, name, os.cpu_count() or 1 if step.share and given.device == "cpu" else 1)
            try:
                while not stage.ended():
                    time.sleep(1)
            finally:
                stage.stop()
            sys.stderr.write(f"{name} done\n")
    reuse.put(job, given.only, shipped.ROOT)
    sys.stderr.write("the card is of other weights now: run `python -m sdxl_ray.tiny._build.card --work DIR`\n")


def run_stage(given: Any) -> None:
    import torch

    from sdxl_ray.tiny._build import reuse
    from sdxl_ray.tiny._build.stages import STEPS, StageJob

    if given.device == "cpu":
        torch.set_num_threads(1)
    step = (reuse.STAGES[given.only] if given.only else STEPS)[given.stage]
    step.run(StageJob(given.work, given.device, given.minutes * step.share, given.scenes))


def write(given: Any) -> None:
    """Put what was trained into the package."""
    from sdxl_ray.tiny import shipped
    from sdxl_ray.tiny._build.finish import finish
    from sdxl_ray.tiny._build.stages import StageJob

    finish(StageJob(given.work, "cpu", given.minutes, given.scenes), shipped.ROOT)


class Running:
    """A stage in processes of its own: `cores` of them share its batches."""

    def __init__(self, given: Any, name: str, cores: int) -> None:
        self.name, self.cores = name, cores
        command = [sys.executable, "-m", "sdxl_ray.tiny._build.build", "--stage", name]
        for key in ("minutes", "device", "scenes", "work", "only"):
            if getattr(given, key) is not None:
                command += [f"--{key}", str(getattr(given, key))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # glibc gives every large tensor back to the system and asks for it again; kept, a step costs 5 % less.
        memory = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**28)}
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(cores), "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(command, env={**os.environ, **memory, **group, "RANK": str(rank)}) for rank in range(cores)
        ]

    def ended(self) -> bool:
        """Whether it is over. Raises RunError when it failed."""
        from sdxl_ray.errors import RunError

        codes = [process.poll() for process in self._processes]
        if any(code not in (None, 0) for code in codes):
            self.stop()
            raise RunError(f"stage {self.name!r} of the builder failed (exit codes {codes}); its message is above")
        return all(code == 0 for code in codes)

    def stop(self) -> None:
        """Ask it to keep its state and end."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


def run_all(given: Any) -> None:
    """Run every stage as soon as what it needs is there and a core is free; idle cores join the UNet's training."""
    from sdxl_ray.tiny._build.stages import STEPS

    slots = 1 if given.device == "cuda" else max(1, os.cpu_count() or 1)
    running: dict[str, Running] = {}
    left = [name for name, step in STEPS.items() if not (given.work / step.leaves).exists()]
    try:
        while left or running:
            for name in [name for name, stage in running.items() if stage.ended()]:
                del running[name]
                sys.stderr.write(f"{name} done\n")
            used = sum(stage.cores for stage in running.values())
            for name in [n for n in left if all((given.work / need).exists() for need in STEPS[n].needs)]:
                if used < slots:
                    running[name] = Running(given, name, 1)
                    left.remove(name)
                    used += 1
            if used < slots and "unet" in running and not left:
                running["unet"].stop()
                running["unet"] = Running(given, "unet", running["unet"].cores + slots - used)
            time.sleep(1)  # stages take minutes; what ended is noticed soon enough
    finally:
        for stage in running.values():
            stage.stop()


if __name__ == "__main__":
    main()
