"""The load test of a comparison: base and arms behind one endpoint of this machine, into the comparison's records."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sdxl_ray.config.load_profile import LoadProfile
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import Recorder, read
from sdxl_ray.io.rows import OnRow, Row
from serve.loadtest.config import LoadArm, LoadTest
from serve.loadtest.plan import runs
from serve.loadtest.run import CARD, identity_of, run_load_test

BASE = "base"


def load_arms(
    profile: LoadProfile,
    recipe: Recipe,
    artifacts: Mapping[str, Artifact],
    home: Path,
    *,
    address: str | None,
    on_row: OnRow,
) -> list[Row]:
    """Every request on the base and the arms; those of `home/records` when they are whole and of these artifacts.

    recipe: any arm's; it has the base, and the steps and guidance that the profile leaves open. Rows of other artifacts
    or of another profile are dropped: a comparison has one load test. address: of a Ray cluster to serve on.
    """
    drawing = recipe.evaluation
    settings = LoadTest(
        **{
            **profile.model_dump(),
            "steps": profile.steps or {drawing.num_inference_steps: 1.0},
            "guidance_scale": drawing.guidance_scale if profile.guidance_scale is None else profile.guidance_scale,
            "arms": {name: LoadArm(model=(name,)) for name in (BASE, *artifacts)},
        }
    )
    hashes = {BASE: "", **{name: artifact.hash for name, artifact in artifacts.items()}}
    known = _known(settings, hashes, home)
    if known is not None:
        on_row({"kind": "note", "text": "the load test is there already"})
        return known

    # Ray and torch are loaded when they are needed.
    from sdxl_ray.distributed.cluster import connected
    from serve.local import running

    on_row({"kind": "phase", "name": "starting the endpoint"})
    config = _serve_config(settings, recipe, artifacts)
    with connected(address, 0) if address else nullcontext(), running(config) as url:
        return run_load_test(settings.model_copy(update={"url": url}), home, on_row=on_row)


def _known(settings: LoadTest, hashes: Mapping[str, str], home: Path) -> list[Row] | None:
    """The rows of this very load test, None when it has to run on; rows of another one are dropped."""
    records = home / "records"
    rows = read(records, "requests").to_pylist() if records.is_dir() else []
    same = identity_of(home) == settings.identity
    if not same or any(row["artifact"] not in (None, hashes.get(row["arm"])) for row in rows):
        with Recorder(records) as recorder:
            recorder.forget("requests")
        (home / CARD).unlink(missing_ok=True)
        return None
    wanted = sum(run.queries for run in runs(settings, list(settings.arms)))
    if settings.bound is not None:
        wanted += settings.bound.probes * settings.bound.queries * len(settings.arms)
    return rows if len(rows) == wanted else None


def _serve_config(settings: LoadTest, recipe: Recipe, artifacts: Mapping[str, Artifact]) -> Any:
    from serve.config import parse

    alone = settings.deployment == "isolated"
    tuned = {
        name: {
            "artifact": str(artifact.folder.absolute()),
            "own_replicas": alone and artifact.manifest.kind == "lora",
        }
        for name, artifact in artifacts.items()
    }
    plain = {
        "base": recipe.base.model_dump(mode="json"),
        "variants": {BASE: None, **tuned},
        "port": 0,
        "images": {"keep_seconds": 0},  # a load test asks for no addresses, so no process has to keep images
    }
    return parse(plain, "the comparison's endpoint")
