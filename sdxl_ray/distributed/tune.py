"""Tune: search a recipe's settings by what held-out pictures say, with Ray Tune around ordinary training runs.

    result = search(space, recipe, storage="runs", name="robot")

Every trial is a run folder `<storage>/<name>/trial-NNN`, and all share `<storage>/cache`. The same call goes on with a
search that was killed: trials that have ended are not run again, one that was under way goes on from its checkpoint.

Under a URL the search's folder is this machine's copy, and the processes of its trials run here: with ZeRO they only
wait for workers, which may be anywhere.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from sdxl_ray.config import Recipe, parse
from sdxl_ray.core.preflight import preflight
from sdxl_ray.core.runfolder import scan_pictures
from sdxl_ray.distributed.chronicle import Chronicle
from sdxl_ray.distributed.cluster import connected, gpus_per_worker
from sdxl_ray.distributed.environment import environment
from sdxl_ray.distributed.finale import conclude
from sdxl_ray.distributed.holdout import scored, trial_recipe
from sdxl_ray.distributed.nodes import require_shared
from sdxl_ray.distributed.searcher import Budget, Clock, Halving, Proposer
from sdxl_ray.distributed.stream import streams
from sdxl_ray.distributed.trial import run_trial
from sdxl_ray.errors import UserError
from sdxl_ray.records import Recorder
from sdxl_ray.report.build import Written, write_report
from sdxl_ray.search import BEST, CARD, ENDED, SearchCard, Trial, Verdict, read_trials, steps_taken
from sdxl_ray.space import Space
from sdxl_ray.storage import Storage

OnRow = Callable[[dict[str, Any]], None]

#: What may be other in a search that goes on: settings of the recipe are compared by themselves.
_MAY_CHANGE = ("budget", "final", "description", "settings")
#: Right below a search's folder, and not mirrored with it: every trial is a run that mirrors itself.
_APART = ("ray", "trial-*")
#: Deaths of a trial's process that it survives; it goes on from its checkpoint.
_RETRIES = 2
#: Ray Tune's defaults that are wrong here: its own log files, a working folder that breaks relative paths, a handler
#: that swallows Ctrl-C, the wish that every result has the metric (a failure has none), and its own display.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class SearchResult:
    """A search that ended: its folder, every trial, the best recipe's file, and how it did against the default.

    kept_at: the folder, or the URL that it is a copy of.
    """

    folder: Path
    kept_at: str
    trials: list[Trial]
    best: Path
    verdict: Verdict
    report: Written


def search(
    space: Space,
    recipe: Recipe,
    *,
    storage: str | Path = "runs",
    name: str,
    address: str | None = None,
    resume: bool = False,
    on_row: OnRow = lambda row: None,
) -> SearchResult:
    """Search, or go on with the search of this name. recipe: `space.start(...)`; resume: it must be there already.

    Raises UserError before a trial starts when the input is wrong that can be known by then, RunError when no trial
    finished.
    """
    recipe.require_complete()
    space.check(recipe)
    preflight(recipe, "cuda")
    if not streams(recipe):
        scan_pictures(scored(space, recipe))
    place = Storage.of(storage)
    home = place.root / name
    place.get_folder(home, _APART)
    card = _card(space, recipe, home, name, resume)
    trials = read_trials(home)
    on_row({"kind": "phase", "name": "connecting to Ray", "done": 0, "total": 0})
    ends_workers = recipe.parallel.engine != "local"  # a trial that is stopped leaves a cut run of Ray Train
    with connected(address, recipe.parallel.workers[1] * recipe.resources.cpus_per_worker, dashboard=ends_workers):
        at_once, resources = _room(recipe)
        if place.url is None:
            require_shared(place)
        else:
            resources[f"node:{ray.util.get_node_ip_address()}"] = 0.001
        _write(card, home)
        for trial in trials:
            on_row({"kind": "trial", **trial.row(), "metrics": trial.metrics})
        _run(card, trial_recipe(space, recipe, home, on_row), place, trials, at_once, resources, on_row)
    verdict = conclude(card, place, trials, on_row)
    card = card.model_copy(update={"verdict": verdict})
    card.write(home)
    on_row({"kind": "phase", "name": "writing the report", "done": 0, "total": 0})
    report = write_report(home)
    place.put_folder(home, _APART)
    return SearchResult(home, place.kept_at(home), trials, home / BEST, verdict, report)


def _card(space: Space, recipe: Recipe, home: Path, name: str, resume: bool) -> SearchCard:
    """The card of this search. Raises UserError where another one is in its folder; a budget may have changed."""
    if (home / CARD).is_file():
        there = SearchCard.open(home)
        for field in Space.model_fields:
            if field not in _MAY_CHANGE and getattr(there.space, field) != getattr(space, field):
                raise UserError(
                    f"search folder {str(home)!r} was made by another space ({field} differs): give another --name"
                )
        if parse(there.recipe).identity != recipe.identity:
            raise UserError(f"search folder {str(home)!r} began with another recipe: give another --name")
    elif resume:
        raise UserError(f"no search to resume in {str(home)!r}: check --storage and --name, or leave --resume out")
    elif home.is_dir() and any(home.iterdir()):
        raise UserError(f"{str(home)!r} is not empty and not a search: give another --name")
    return SearchCard(
        name=name,
        space=space,
        recipe=recipe.model_dump(mode="json"),
        environment=environment("optuna").model_dump(mode="json"),
    )


def _write(card: SearchCard, home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        card.write(home)
    except OSError as error:
        where = f"search folder {str(home)!r} cannot be made"
        raise UserError(f"{where}: {error.strerror}; give another --storage") from None


def _room(recipe: Recipe) -> tuple[int, dict[str, float]]:
    """How many trials the cluster holds at once, and what the process of a trial asks for.

    Raises UserError when it holds none.
    """
    workers = recipe.parallel.workers[1]
    gpus = gpus_per_worker(recipe)
    need = {"CPU": workers * recipe.resources.cpus_per_worker} | ({"GPU": workers * gpus} if gpus else {})
    has = ray.cluster_resources()
    for kind, wanted in need.items():
        if wanted > has.get(kind, 0):
            raise UserError(
                f"a trial needs {wanted} {kind}s (parallel.workers={workers}), the cluster has {has.get(kind, 0):g}: "
                "lower parallel.workers, or give an --address with more"
            )
    at_once = min(int(has[kind] // wanted) for kind, wanted in need.items())
    # Under Ray Train the workers hold what the trial needs; the trial itself only waits for them. Ray Tune insists on a
    # resource, and a sliver of a CPU could be one too many.
    return at_once, dict(need) if recipe.parallel.engine == "local" else {"memory": 1}


def _run(
    card: SearchCard,
    recipe: Recipe,
    place: Storage,
    trials: list[Trial],
    at_once: int,
    resources: dict[str, float],
    on_row: OnRow,
) -> None:
    """Run trials until the budget is spent; `trials` grows."""
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner, with_resources

    space, clock, home = card.space, Clock(trials), place.root / card.name
    budget = Budget(space, trials, clock)
    left = -1 if space.budget.trials is None else space.budget.trials - sum(t.state in ENDED for t in trials)
    if left == 0 or budget.stop_all():
        return
    fixed = {
        "recipe": recipe.model_dump(mode="json"),
        "storage": place.url or str(place.root),
        "metrics": list(space.metric),
        "scored": space.scored,
    }
    proposer = Proposer(space, recipe, trials, lambda number: f"{card.name}/trial-{number:03d}")
    with Recorder(home / "records") as recorder:
        chronicle = Chronicle(proposer, place, recorder, clock, on_row, lambda: place.put_folder(home, _APART))
        tuner = Tuner(
            with_resources(run_trial, resources),
            param_space=fixed,
            tune_config=TuneConfig(
                search_alg=proposer,
                scheduler=Halving(space, recipe, trials) if space.scheduler.kind == "asha" else None,
                num_samples=left,
                max_concurrent_trials=at_once,
                # A process that trains itself serves the next trial; one that waits for workers goes with them.
                reuse_actors=recipe.parallel.engine == "local",
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex[:12],
                storage_path=str(home / "ray"),
                stop=budget,
                callbacks=[chronicle],
                failure_config=FailureConfig(max_failures=_RETRIES),
                verbose=0,
            ),
        )
        on_row({"kind": "phase", "name": "searching", "done": len(trials), "total": space.budget.trials or 0})
        try:
            with _environment():
                tuner.fit()
        finally:
            chronicle.close()
    if budget.spent:
        on_row({"kind": "note", "text": f"{budget.spent} is spent: {len(trials)} trials, {steps_taken(trials)} steps"})


@contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
