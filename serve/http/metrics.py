"""The Prometheus metrics of an endpoint, all in one table; `serve/grafana.json` shows them and a test compares the two.

They go through `ray.serve.metrics`, so Ray's metrics port of each node has them as `ray_<name>`, with the deployment
and the replica as tags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

MILLISECONDS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000)


@dataclass(frozen=True)
class PrometheusMetric:
    """What one metric is."""

    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    tags: tuple[str, ...] = ()


METRICS: dict[str, PrometheusMetric] = {
    "sdxl_ray_requests": PrometheusMetric("counter", "requests answered, by HTTP status", ("variant", "status")),
    "sdxl_ray_shed": PrometheusMetric(
        "counter", "requests turned away with 429 or 503, by reason", ("variant", "reason")
    ),
    "sdxl_ray_retries": PrometheusMetric(
        "counter", "images ordered again because their replica died or failed", ("variant",)
    ),
    "sdxl_ray_request_ms": PrometheusMetric("histogram", "milliseconds of a request that got its images", ("variant",)),
    "sdxl_ray_under_way": PrometheusMetric("gauge", "images that an ingress has admitted and not answered", ("group",)),
    "sdxl_ray_work": PrometheusMetric("gauge", "their work, in steps of one image of the base's own size", ("group",)),
    "sdxl_ray_stage_ms": PrometheusMetric("histogram", "milliseconds of a stage of an image", ("variant", "stage")),
    "sdxl_ray_in_flight": PrometheusMetric("gauge", "images in the batch of a replica", ("group",)),
    "sdxl_ray_waiting": PrometheusMetric("gauge", "images that wait for a place in the batch", ("group",)),
    "sdxl_ray_occupancy": PrometheusMetric("gauge", "mean number of images in a denoising step", ("group",)),
    "sdxl_ray_step_ms": PrometheusMetric("gauge", "milliseconds of a denoising step", ("group",)),
    "sdxl_ray_resident_adapters": PrometheusMetric("gauge", "adapters in memory", ("group",)),
}


class Meter:
    """The metrics of this process; made when they are first used, so that a process shows only its own."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def count(self, name: str, **tags: str) -> None:
        """Add one to a counter."""
        self._metric(name).inc(1, tags)

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        self._metric(name).set(value, tags)

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Add an observation to a histogram."""
        self._metric(name).observe(value, tags)

    def _metric(self, name: str) -> Any:
        if name not in self._made:
            from ray.serve import metrics

            known = METRICS[name]
            kinds = {"counter": metrics.Counter, "gauge": metrics.Gauge, "histogram": metrics.Histogram}
            bounds = {"boundaries": list(MILLISECONDS)} if known.kind == "histogram" else {}
            self._made[name] = kinds[known.kind](name, description=known.meaning, tag_keys=known.tags, **bounds)
        return self._made[name]
