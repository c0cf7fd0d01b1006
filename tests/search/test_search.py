"""A search: killed and resumed, over rates that diverge; trials under Ray Train that end with their workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdxl_ray.config.recipe import load, override, parse
from sdxl_ray.config.search_space import METRICS, Space, load_space
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.evaluation.subject import photos_of
from sdxl_ray.io.records import read
from sdxl_ray.io.search_records import SearchCard, Trial, front, read_trials
from sdxl_ray.io.storage import Storage
from sdxl_ray.search.final_evaluation import evaluate_finalists
from sdxl_ray.search.search import SearchResult, search
from sdxl_ray.training.run_directory import RunFolder
from tests.distributed.conftest import processes

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

PLANTED = Path(__file__).with_name("planted.yaml")
COMMAND = [sys.executable, "-m", "sdxl_ray", "tune", str(PLANTED), "--name", "s"]


def _settled(folder: Path) -> list[Trial]:
    return [trial for trial in read_trials(folder) if trial.state in ("finished", "stopped", "failed")]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Trial], dict[str, Any]]:
    """The search's folder, the trials that had ended when its driver was killed, and what the second command said."""
    home = tmp_path_factory.mktemp("planted")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    log = (home / "first.log").open("w")
    driver = subprocess.Popen(COMMAND, cwd=home, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while len(_settled(home / "runs" / "s")) < 2 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    before = _settled(home / "runs" / "s")
    again = subprocess.run(
        [*COMMAND, "--resume", "--json"], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, (home / "first.log").read_text() + again.stderr
    return home / "runs" / "s", before, json.loads(again.stdout)


def test_trials_that_had_ended_are_not_run_again(planted: tuple[Path, list[Trial], dict[str, Any]]) -> None:
    folder, before, _ = planted
    assert 2 <= len(before) < 5, "the driver was killed too early or too late"
    after = {trial.number: trial for trial in read_trials(folder)}
    for trial in before:
        assert after[trial.number] == trial
    assert sorted(after) == list(range(5))
    assert all(trial.state in ("finished", "stopped", "failed") for trial in after.values())


def test_a_space_that_diverges_ends_with_a_sensible_winner(planted: tuple[Path, list[Trial], dict[str, Any]]) -> None:
    folder, _, reported = planted
    trials = read_trials(folder)
    rates = {trial.number: trial.parameters["optim.lr"] for trial in trials}
    assert rates[0] == 1e-7
    assert {rates[trial.number] for trial in trials if trial.state == "failed"} == {1e20}
    assert all(trial.error for trial in trials if trial.state == "failed")
    assert all(trial.state != "finished" for trial in trials if rates[trial.number] == 0.3), (
        "asha let a weak one through"
    )
    winner = reported["verdict"]["winner"]
    assert rates[winner] == 2e-3
    assert "without scored images" in reported["verdict"]["sentence"]
    best = load(reported["best"])
    card = SearchCard.open(folder)
    assert best == override(load_space(str(PLANTED)).start({}), {"optim.lr": 2e-3})
    assert "extends" not in yaml.safe_load(Path(reported["best"]).read_text())
    assert card.verdict is not None
    assert Path(reported["report"]).is_file()


def test_a_search_that_is_over_only_tells_again(planted: tuple[Path, list[Trial], dict[str, Any]]) -> None:
    folder, _, reported = planted
    rows: list[dict[str, Any]] = []
    space = load_space(str(PLANTED))
    result = search(space, space.start({}), storage=folder.parent, name="s", on_row=rows.append)
    assert result.verdict.model_dump(mode="json") == reported["verdict"]
    assert not any(row["kind"] == "phase" and row["name"] == "searching" for row in rows)


def test_a_budget_below_what_has_ended_begins_nothing(planted: tuple[Path, list[Trial], dict[str, Any]]) -> None:
    folder, _, reported = planted
    rows: list[dict[str, Any]] = []
    space = load_space(str(PLANTED), {"budget.trials": 4})
    result = search(space, space.start({}), storage=folder.parent, name="s", on_row=rows.append)
    assert len(result.trials) == 5
    assert result.verdict.model_dump(mode="json") == reported["verdict"]
    assert not any(row["kind"] == "phase" and row["name"] == "searching" for row in rows)


def test_another_space_is_refused(planted: tuple[Path, list[Trial], dict[str, Any]]) -> None:
    folder, _, _ = planted
    other = load_space(str(PLANTED), {"searcher.seed": 5})
    with pytest.raises(UserError, match=r"made by another space \(searcher differs\)"):
        search(other, other.start({}), storage=folder.parent, name="s")
    same = load_space(str(PLANTED))
    with pytest.raises(UserError, match="began with another recipe"):
        search(same, same.start({"optim.lr": 1e-6}), storage=folder.parent, name="s")


def _under_ray(**changes: Any) -> Space:
    plain = yaml.safe_load(PLANTED.read_text())
    plain["settings"] |= {"parallel.engine": "zero", "optim.lr": 2e-3}
    plain["parameters"] = {"optim.lr": {"kind": "choice", "values": [0.3]}}
    return Space.model_validate(plain | changes)


@pytest.mark.exhaustive  # a cluster of its own, two minutes on a quiet machine
def test_what_a_stopped_trial_had_reserved_is_there_for_the_next(tmp_path: Path) -> None:
    """In a cluster of its own with room for one trial: the third can only begin when the second has let go."""
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(_under_ray(budget={"trials": 3}).model_dump(mode="json")))
    command = [sys.executable, "-m", "sdxl_ray", "tune", str(space), "--name", "s", "resources.cpus_per_worker=3"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    reported = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert reported.returncode == 0, reported.stderr
    folder = tmp_path / "runs" / "s"
    trials = read_trials(folder)
    assert [trial.state for trial in trials] == ["finished", "stopped", "stopped"]
    assert all(trial.step in (4, 8) for trial in trials[1:])
    assert json.loads(reported.stdout)["verdict"]["winner"] == 0
    assert not (folder / "trial-001" / "artifact").exists()


def test_more_than_the_cluster_has_is_refused_at_once(ray_cluster: None, tmp_path: Path) -> None:
    space = _under_ray()
    with pytest.raises(UserError, match=r"a trial needs 5 CPUs \(parallel.workers=5\), the cluster has 4: lower"):
        search(space, space.start({"parallel.workers": 5}), storage=tmp_path, name="s")


def test_a_budget_of_one_trials_steps_has_a_winner(ray_cluster: None, tmp_path: Path) -> None:
    """There is room for four beside each other, and steps for one."""
    space = load_space(str(PLANTED), {"budget": {"steps": 14}})
    result = search(space, space.start({}), storage=tmp_path, name="s")
    assert [trial.state for trial in result.trials] == ["finished"]
    assert result.verdict.winner == 0


def test_local_trials_under_a_url_need_what_this_node_has(ray_cluster: None, tmp_path: Path) -> None:
    space = load_space(str(PLANTED))
    recipe = space.start({"resources.cpus_per_worker": 5})
    with pytest.raises(UserError, match=r"trials run on this node, which has not 5 CPUs: set parallel.engine=zero"):
        search(space, recipe, storage="memory://runs", name="s")


def test_a_search_without_a_finished_trial_is_a_run_error(ray_cluster: None, tmp_path: Path) -> None:
    space = load_space(str(PLANTED), {"budget.trials": 1})
    with pytest.raises(RunError, match=r"no trial of 1 finished: the .* is not finite"):
        search(space, space.start({"optim.lr": 1e20}), storage=tmp_path, name="s")
    assert [trial.state for trial in read_trials(tmp_path / "s")] == ["failed"]


@pytest.mark.exhaustive  # three processes are started for one trial
def test_a_trial_whose_process_dies_too_often_has_failed_and_the_search_goes_on(
    ray_cluster: None, tmp_path: Path
) -> None:
    killed = []

    def on_row(row: dict[str, Any]) -> None:
        if row["kind"] == "trial" and row["trial"] == 1 and row["state"] == "running":
            for process in processes("ImplicitFunc"):
                process.kill()
                killed.append(process.pid)

    space = load_space(str(PLANTED), {"budget.trials": 3, "at_once": 1})
    result = search(space, space.start({}), storage=tmp_path, name="s", on_row=on_row)
    assert len(killed) == 3  # it goes on from its checkpoint twice
    assert [trial.state for trial in result.trials][:2] == ["finished", "failed"]
    assert result.trials[1].error.startswith("its process died every time")
    assert result.trials[2].state in ("finished", "stopped", "failed")


#: Scores of few, small, quick images.
SCORED = {
    "data.class_name": "robot",
    "evaluation.score_prompts": 2,
    "evaluation.class_images": 2,
    "evaluation.num_inference_steps": 8,  # fewer draw nothing that could be told from nothing
    "evaluation.guidance_scale": 4.0,
    "data.resolution": None,
    "optim.steps": 4,
    "optim.lr": 1e-7,
    "parallel.engine": "local",
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage for the searches with scores: the base is scored once."""
    return tmp_path_factory.mktemp("scored")


@pytest.fixture(scope="module")
def wrong(ray_cluster: None, storage: Path) -> SearchResult:
    """The space asks for the least prompt fidelity, so what wins the search must lose in the end."""
    final = {"seeds": 2, "class_images": 2}
    space = _under_ray(metric="clip_t", mode="min", scheduler={"kind": "none"}, budget={"trials": 2}, final=final)
    return search(space, space.start(SCORED), storage=storage, name="wrong")


def test_the_final_split_finds_out_a_search_that_went_the_wrong_way(wrong: SearchResult, storage: Path) -> None:
    assert [trial.state for trial in wrong.trials] == ["finished", "finished"]
    assert wrong.verdict.winner == 1
    assert not wrong.verdict.beats_default
    assert "Trial 1 is worse than the default: -" in wrong.verdict.sentence
    gains = {row["metric"]: row for row in wrong.verdict.differences}
    assert {"quality", "dino_i", "clip_t", "pres", "div"} <= gains.keys()
    assert gains["clip_t"]["high"] < 0
    judged = read(wrong.folder / "records", "pictures").to_pylist()
    kept = {row["path"] for row in judged if row["purpose"] == "real"}
    tune = RunFolder(wrong.folder / "trial-000", storage / "cache").images().held_out
    assert len(kept) == 3 and len(tune) == 2
    assert not {f"{photo.pixels[:16]}.png" for photo in photos_of(tune)} & {Path(path).name for path in kept}
    rows = read(wrong.folder / "records", "scores").to_pylist()
    assert {row["split"] for row in rows} == {"final"}
    seen = read(wrong.folder / "trial-000" / "records", "scores").to_pylist()
    assert {row["split"] for row in seen} == {"tune"}
    assert wrong.trials[0].metrics.keys() == METRICS.keys()
    assert not list(wrong.folder.glob("trial-*/checkpoints"))
    assert load(str(wrong.best)).data.validation == "subject:robot/held_out"  # not the half that the search tuned on


@pytest.mark.exhaustive  # workers draw and score as this process does in test_drawing.py
def test_under_ray_train_the_workers_draw_the_final_split(wrong: SearchResult, storage: Path) -> None:
    """The driver may be on a head without a GPU."""
    shutil.rmtree(wrong.folder / "pictures")
    card = SearchCard.open(wrong.folder)
    plain = override(parse(card.recipe), {"parallel.engine": "zero"}).model_dump(mode="json")
    rows: list[dict[str, Any]] = []
    place = Storage.of(storage)
    again = evaluate_finalists(card.model_copy(update={"recipe": plain}), place, wrong.trials, 0, rows.append)
    assert (again.winner, again.beats_default) == (1, False)
    assert "starting 1 worker" in [row.get("name") for row in rows]


def test_several_metrics_give_a_front(ray_cluster: None, storage: Path) -> None:
    space = _under_ray(
        metric=["dino_i", "pres"], scheduler={"kind": "none"}, searcher={"kind": "nsga2"}, budget={"trials": 2}
    )
    result = search(space, space.start(SCORED), storage=storage, name="several")
    on = front(result.trials, space.modes)
    assert on
    assert [path.name for path in sorted(result.folder.glob("front-*.yaml"))] == [
        f"front-{t.number:03d}.yaml" for t in on
    ]
    assert "Pareto front" in result.report.markdown.read_text()
