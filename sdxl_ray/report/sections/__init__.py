"""The sections of a report, one file each: `section(facts)` gives a `ReportSection` of blocks.

A section that a later part of the project brings (the search) is one more file and one more row.
"""

from __future__ import annotations

from collections.abc import Callable

from sdxl_ray.report.document import ReportSection
from sdxl_ray.report.facts import ComparisonFacts
from sdxl_ray.report.sections import (
    accuracy,
    answer,
    choice,
    claims,
    cost,
    curves,
    images,
    inference,
    latency,
    provenance,
)

#: In the order of the page.
SECTIONS: tuple[Callable[[ComparisonFacts], ReportSection], ...] = (
    answer.section,
    images.section,
    accuracy.section,
    curves.section,
    cost.section,
    inference.section,
    latency.section,
    claims.section,
    choice.section,
    provenance.section,
)
