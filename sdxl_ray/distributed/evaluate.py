"""Evaluate a request: draw in this process or on Ray workers, score, record."""

from __future__ import annotations

from pathlib import Path

from sdxl_ray.evaluation.request import OpenedRequest, ResolvedRequest, resolve
from sdxl_ray.evaluation.runner import EvaluationResult, evaluate
from sdxl_ray.io.records import Recorder
from sdxl_ray.io.rows import OnRow


def evaluate_request(
    opened: OpenedRequest,
    out: Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    on_row: OnRow = lambda row: None,
) -> tuple[ResolvedRequest, EvaluationResult]:
    """Scores of a request's models; images and records go to `out`, and images that lie there are not drawn again.

    workers: Ray workers that draw; with an address but no number, all that the cluster has; with neither, this process.
    Raises UserError for input that cannot be evaluated, RunError when drawing fails.
    """
    resolved = resolve(opened, on_row)
    models, subject, prompts, settings = resolved.models, resolved.subject, resolved.prompts, resolved.settings
    if workers is not None or address is not None:
        from sdxl_ray.distributed.cluster import connected
        from sdxl_ray.distributed.generation import capacity, draw_on_workers

        with connected(address, workers or 1):
            count = workers or capacity()
            draw_on_workers(models, subject, prompts, settings, home=out, workers=count, on_row=on_row)
    found = evaluate(models, subject, prompts, settings, home=out, on_row=on_row)
    assert found is not None  # one process is rank 0
    with Recorder(out / "records") as recorder:
        found.record(recorder)
    return resolved, found
