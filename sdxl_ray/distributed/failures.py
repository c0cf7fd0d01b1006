"""Why a training run failed, as one line: Ray wraps a worker's traceback in its own, and a kill in 1,400 characters."""

from __future__ import annotations

import re

_KILLED = re.compile(r"killed due to the node running low on memory|NODE_OUT_OF_MEMORY")
_NODE = re.compile(r"Memory on the node \(IP: ([^,\s]+),.*?was ([\d.]+) ?GB(?: used)? / ([\d.]+) ?GB", re.DOTALL)
_USED = re.compile(r"memory used=([\d.]+) ?GB")
_CUDA = re.compile(r"CUDA out of memory\.[^.]*\.\d+ \w+")
_DIED = re.compile(r"(?:actor|worker process|worker) (?:has )?died|worker process has died|died unexpectedly")
#: What needs less memory, cheapest first; `sdxl-ray plan` has the numbers.
_LESS = "lower parallel.micro_batch or set parallel.gradient_checkpointing=true"


def cause(error: BaseException) -> str:
    """The line that says something: a kill with its worker, node and memory, else the last one of the message."""
    text = str(error)
    worker = _worker(error)
    if _KILLED.search(text):
        node, used = _NODE.search(text), _USED.search(text)
        mine = f" with {used[1]} GB" if used else ""
        full = f" on node {node[1]}, whose memory was full ({node[2]} of {node[3]} GB)" if node else ""
        return (
            f"{worker}{mine} was killed{full or ' because its node ran out of memory'}: {_LESS}, use fewer workers a "
            "node, or give it more memory"
        )
    cuda = _CUDA.search(text)
    if cuda:
        return f"{worker}: {cuda[0]}: {_LESS}, parallel.zero_stage=3 or a GPU with more memory"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "SIGKILL" in text and _DIED.search(text):
        return f"{worker} was killed from outside, often by the system where memory is full: {_LESS}, or see its logs"
    return lines[-1] if lines else type(error).__name__


def _worker(error: BaseException) -> str:
    """`worker 3`: the rank of the first worker that Ray Train reports as failed."""
    ranks = sorted(getattr(error, "worker_failures", None) or ())
    return f"worker {ranks[0]}" if ranks else "a worker"
