"""The sections of a report, one file each: `section(facts)` gives a `Section` of blocks.

A section that a later part of the project brings (the search) is one more file and one more row.
"""

from __future__ import annotations

from collections.abc import Callable

from sdxl_ray.report.document import Section
from sdxl_ray.report.facts import Facts
from sdxl_ray.report.sections import accuracy, answer, choice, claims, cost, curves, inference, latency, made, pictures

#: In the order of the page.
SECTIONS: tuple[Callable[[Facts], Section], ...] = (
    answer.section,
    pictures.section,
    accuracy.section,
    curves.section,
    cost.section,
    inference.section,
    latency.section,
    claims.section,
    choice.section,
    made.section,
)
