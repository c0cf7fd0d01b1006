"""Tune: search a recipe's settings by what held-out images say, with Ray Tune around ordinary training runs.

    result = search(space, recipe, storage="runs", name="robot")

Every trial is a run folder `<storage>/<name>/trial-NNN`, and all share `<storage>/cache`. The same call resumes a
search that was killed: trials that have ended are not run again, one that was under way resumes from its checkpoint.

Under a URL the search's folder is this machine's copy, and the processes of its trials run here: with ZeRO they only
wait for workers, which may be anywhere.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import ray

from sdxl_ray.config.notes import recipe_notes, report_notes
from sdxl_ray.config.recipe import Recipe, override, parse
from sdxl_ray.config.search_space import Space
from sdxl_ray.data.unused_files import unused
from sdxl_ray.distributed.capacity import ClusterCapacity
from sdxl_ray.distributed.cluster import connected, gpus_per_worker
from sdxl_ray.distributed.environment import environment
from sdxl_ray.distributed.exported import exported
from sdxl_ray.distributed.nodes import require_shared
from sdxl_ray.distributed.ray_data import streams
from sdxl_ray.distributed.worker_paths import require_visible
from sdxl_ray.errors import UserError
from sdxl_ray.interrupts import keeping
from sdxl_ray.io.records import Recorder
from sdxl_ray.io.rows import OnRow
from sdxl_ray.io.search_records import BEST, CARD, ENDED, FinalVerdict, SearchCard, Trial, read_trials, steps_taken
from sdxl_ray.io.storage import Storage
from sdxl_ray.paths import required_name, working_directory
from sdxl_ray.report.build import Written, write_report
from sdxl_ray.search.callback import TrialRecorder
from sdxl_ray.search.final_evaluation import evaluate_finalists
from sdxl_ray.search.optuna_search import BudgetStopper, Clock, Halving, Proposer
from sdxl_ray.search.splits import SAME_PHOTOS, final_photos, final_prompts, judged, scored
from sdxl_ray.search.trial import run_trial
from sdxl_ray.training.input_notes import scanned_notes, unread_notes
from sdxl_ray.training.preflight import preflight
from sdxl_ray.training.run_directory import scan_images
from sdxl_ray.training.run_lock import locked

#: Settings that a resumed search may change; those of the recipe are compared separately.
_MAY_CHANGE = ("budget", "max_concurrent_trials", "final", "description", "settings")
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
    verdict: FinalVerdict
    report: Written


def search(
    space: Space,
    recipe: Recipe,
    *,
    storage: str | Path | Storage = "runs",
    name: str,
    address: str | None = None,
    resume: bool = False,
    on_row: OnRow = lambda row: None,
) -> SearchResult:
    """Search, or resume the search of this name. recipe: `space.start(...)`; resume: it must be there already.

    Raises UserError before a trial starts when the input is wrong that can be known by then, RunError when no trial
    finished.
    """
    recipe.require_complete()
    space.check(recipe)
    files = preflight(recipe, "cuda")
    trials_recipe = scored(space, recipe)
    report_notes([*recipe_notes(recipe, search=True), *unread_notes(recipe)], on_row)
    if not streams(recipe):
        images = scan_images(trials_recipe)
        report_notes(scanned_notes(recipe, images, files), on_row)
        if space.final.photos is not None:
            report_notes(unused(space.final.photos, "final.photos", "photos"), on_row)
        if space.scored and not final_photos(space, recipe).apart:
            on_row({"kind": "note", "text": SAME_PHOTOS})
    if judged(space, recipe):
        final_prompts(space, recipe)
    store = Storage.usable(storage)
    kept = f"{store.kept_at(store.root / name)} keeps every finished trial; the same command resumes the search"
    with locked(store.root / required_name(name)), keeping(lambda: kept):
        return _search(space, recipe, trials_recipe, store, name, address, resume, on_row)


def _search(
    space: Space,
    recipe: Recipe,
    trials_recipe: Recipe,
    store: Storage,
    name: str,
    address: str | None,
    resume: bool,
    on_row: OnRow,
) -> SearchResult:
    home = store.root / name
    store.get_folder(home, _APART)
    card = _card(space, recipe, home, name, resume)
    trials = read_trials(home)
    on_row({"kind": "phase", "name": "connecting to Ray", "done": 0, "total": 0})
    ends_workers = recipe.parallel.engine != "local"  # a trial that is stopped leaves a cut run of Ray Train
    with connected(address, recipe.parallel.workers[1] * recipe.resources.cpus_per_worker, dashboard=ends_workers):
        gpus = gpus_per_worker(recipe)
        # Said to trials: on another node the launcher's file is not there to be asked.
        trials_recipe = override(trials_recipe, {"resources.gpus_per_worker": gpus})
        at_once, resources = _capacity(recipe, gpus, store, space.max_concurrent_trials)
        require_shared(store)
        require_visible(recipe.local_paths)
        _write(card, home)
        for trial in trials:
            on_row({"kind": "trial", **trial.row(), "metrics": trial.metrics})
        _run(card, trials_recipe, store, trials, at_once, resources, on_row)
        verdict = evaluate_finalists(card, store, trials, gpus, on_row)
    card = card.model_copy(update={"verdict": verdict})
    card.write(home)
    on_row({"kind": "phase", "name": "writing the report", "done": 0, "total": 0})
    report = write_report(home)
    store.put_folder(home, _APART)
    return SearchResult(home, store.kept_at(home), trials, home / BEST, verdict, report)


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


def _capacity(recipe: Recipe, gpus: int, store: Storage, most: int | None) -> tuple[int, dict[str, float]]:
    """How many trials the cluster holds at once (at most `most`), and what the process of a trial asks for.

    Raises UserError when it holds none.
    """
    capacity, local = ClusterCapacity.now(), recipe.parallel.engine == "local"
    need = {"CPU": recipe.resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    # Under Ray Train the workers hold what the trial needs; the trial itself only waits for them. Ray Tune insists on a
    # resource, and a sliver of a CPU could be one too many.
    asks: dict[str, float] = dict(need) if local else {"memory": 1}
    if store.url is not None:
        asks[f"node:{ray.util.get_node_ip_address()}"] = 0.001
        if local:
            capacity = ClusterCapacity.here()
            if not capacity.workers(need):
                raise UserError(
                    f"with parallel.engine=local and a URL, trials run on this node, which has not {_text(need)}: set "
                    "parallel.engine=zero, or give a --storage that every node mounts"
                )
    return require_capacity(capacity, need, recipe.parallel.workers[1], most), asks


def require_capacity(capacity: ClusterCapacity, need: dict[str, int], workers: int, most: int | None = None) -> int:
    """How many trials of so many workers there is room for, at most `most`.

    Where nobody knows what a cluster grows to it is `most`, or what the nodes hold that are there, one at least.
    Raises UserError where there is room for none.
    """
    fit = capacity.workers(need)
    if fit is None:
        return most or max(1, (ClusterCapacity(capacity.live).workers(need) or 0) // workers)
    for kind, wanted in need.items():
        if workers * wanted > capacity.total(kind):
            raise UserError(
                f"a trial needs {workers * wanted} {kind}s (parallel.workers={workers}), the cluster has "
                f"{capacity.total(kind):g}: lower parallel.workers, or give an --address with more"
            )
        if wanted > capacity.largest(kind):
            raise UserError(
                f"a worker needs {wanted} {kind}s on one node, the largest has {capacity.largest(kind):g}: lower "
                f"resources.{kind.lower()}s_per_worker, or give an --address with larger nodes"
            )
    if fit < workers:
        raise UserError(
            f"a trial needs {workers} workers of {_text(need)}, the nodes have room for {fit}: lower parallel.workers, "
            "or give an --address with more"
        )
    return min(fit // workers, most or fit)


def _text(need: dict[str, int]) -> str:
    return " and ".join(f"{amount} {kind}{'s' if amount > 1 else ''}" for kind, amount in need.items())


def _run(
    card: SearchCard,
    recipe: Recipe,
    store: Storage,
    trials: list[Trial],
    at_once: int,
    resources: dict[str, float],
    on_row: OnRow,
) -> None:
    """Run trials until the budget is spent; `trials` grows."""
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner, with_resources

    space, clock, home = card.space, Clock(trials), store.root / card.name
    budget = BudgetStopper(space, recipe, trials, clock)
    left = None if space.budget.trials is None else space.budget.trials - sum(t.state in ENDED for t in trials)
    if (left is not None and left <= 0) or budget.stop_all():
        return
    fixed = {
        "recipe": recipe.model_dump(mode="json"),
        "storage": store.url or str(store.root),
        "metrics": list(space.metric),
        "scored": space.scored,
        "driver": working_directory(),
    }
    proposer = Proposer(space, recipe, trials, lambda number: f"{card.name}/trial-{number:03d}")
    with Recorder(home / "records") as recorder:
        trial_recorder = TrialRecorder(proposer, store, recorder, clock, on_row, lambda: store.put_folder(home, _APART))
        tuner = Tuner(
            with_resources(run_trial, resources),
            param_space=fixed,
            tune_config=TuneConfig(
                search_alg=proposer,
                scheduler=Halving(space, recipe, trials) if space.scheduler.kind == "asha" else None,
                num_samples=-1 if left is None else left,  # -1: without an end of its own
                max_concurrent_trials=at_once,
                # A process that trains itself serves the next trial; one that waits for workers goes with them.
                reuse_actors=recipe.parallel.engine == "local",
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex[:12],
                storage_path=str(home / "ray"),
                stop=budget,
                callbacks=[trial_recorder],
                failure_config=FailureConfig(max_failures=_RETRIES),
                verbose=0,
            ),
        )
        on_row({"kind": "phase", "name": "searching", "done": len(trials), "total": space.budget.trials or 0})
        try:
            with exported(_ENVIRONMENT):
                tuner.fit()
        finally:
            trial_recorder.close()
    if budget.spent:
        taken = f"{len(trials)} trials, {steps_taken(trials)} steps"
        on_row({"kind": "note", "text": f"{budget.spent} holds no other trial: {taken}"})
