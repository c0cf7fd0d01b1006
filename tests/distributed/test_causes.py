"""A run that failed says why in one line, whatever Ray wraps it in."""

from __future__ import annotations

import pytest
from ray.train import ControllerError, WorkerGroupError

from sdxl_ray.distributed.failures import cause

ADVICE = (
    "Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/x.html. "
    "Consider provisioning more memory on this node or reducing task parallelism by requesting more CPUs per task. "
    "To disable worker killing, set the environment variable `RAY_memory_monitor_refresh_ms` to zero. "
) * 3
#: As Ray words it since 2.56, and before.
KILLED = (
    "1 worker(s) were killed due to the node running low on memory. \n"
    "Memory on the node (IP: 10.0.62.231, ID: e5d953ef) was 27.71GB used / 28.80GB limit (0.962273)\n"
    "Ray killed 1 worker(s) based on the killing policy\n"
    "[(actor ID: 43534c, name=RayTrainWorker.__init__, pid=11362, actual memory used=1.25GB, worker ID=6f2e)]\n"
    "Top 10 memory users: \nPID\tMEM(GB)\tCOMMAND\n410728\t8.47\tray::RayTrainWorker\n" + ADVICE
)
KILLED_BEFORE = (
    "Task was killed due to the node running low on memory.\n"
    "Memory on the node (IP: 10.0.62.231, ID: e5d953ef) where the task (actor ID: 4353, name=RayTrainWorker, "
    "pid=11362, memory used=1.25GB) was running was 27.71GB / 28.80GB (0.962273), which exceeds the memory usage "
    "threshold of 0.95. Ray killed this worker (ID: 6f2ec5) because it was the most recently scheduled task; to see "
    "more information about memory usage on this node, use `ray logs raylet.out -ip 10.0.62.231`.\n"
    "Top 10 memory users:\nPID\tMEM(GB)\tCOMMAND\n410728\t8.47\tray::RayTrainWorker\n" + ADVICE
)


def failed(text: str, rank: int = 3) -> str:
    line = cause(WorkerGroupError(f"[Rank {rank} Error Snippet]:\n{text}", {rank: RuntimeError(text)}))
    assert "\n" not in line
    assert len(line) < 300
    return line


@pytest.mark.parametrize("text", [KILLED, KILLED_BEFORE])
def test_a_worker_killed_for_memory_is_named_with_its_node_and_the_fix(text: str) -> None:
    line = failed(text)
    assert line.startswith(
        "worker 3 with 1.25 GB was killed on node 10.0.62.231, whose memory was full (27.71 of 28.80 GB): "
    )
    assert "parallel.micro_batch" in line
    assert "parallel.gradient_checkpointing=true" in line


def test_other_ways_to_run_out_of_memory_are_named() -> None:
    cuda = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.99 "
        "GiB of which 1.2 GiB is free. Including non-PyTorch memory, this process has 22 GiB memory in use."
    )
    assert failed(cuda).startswith(
        "worker 3: CUDA out of memory. Tried to allocate 2.50 GiB: lower parallel.micro_batch"
    )
    kernel = (
        "The actor died unexpectedly before finishing this task.\nThe actor is dead because its worker process has "
        "died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error "
        "code 2. End of file. Some common causes include: (1) the process was killed by the OOM killer due to high "
        "memory usage, (2) ray stop --force was called. The worker was killed by SIGKILL."
    )
    assert "worker 3 was killed from outside" in failed(kernel)
    exit_type = "Worker exit type: NODE_OUT_OF_MEMORY"
    assert "its node ran out of memory" in cause(ControllerError(RuntimeError(exit_type)))


def test_any_other_failure_is_its_last_line() -> None:
    assert failed("Traceback (most recent call last):\n  File x\nValueError: boom\n") == "ValueError: boom"
    assert cause(RuntimeError("")) == "RuntimeError"
