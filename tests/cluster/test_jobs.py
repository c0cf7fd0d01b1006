"""`ray job submit --working-dir . -- python -m sdxl_ray …` on a real cluster of two nodes with token authentication."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import read
from tests.nodes import Cluster, wait_for

ROOT = Path(__file__).parents[2]
SUBJECTS = ROOT / "sdxl_ray" / "tiny" / "subjects"
SUBJECT = ("data.subject=sks robot", "data.resolution=32", "evaluation.every=0")
QUICK = (
    "optim.warmup_steps=0",
    "evaluation.num_inference_steps=1",
    "evaluation.draws=1",
    "checkpoint.every=2",
    "parallel.workers=2",
)


def _submit(
    cluster: Cluster, *words: str, folder: Path = ROOT, options: tuple[str, ...] = (), **environment: str
) -> tuple[int, str]:
    """Exit code and everything that was printed, the job's log with it. folder: the working directory that is sent."""
    command = ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", str(folder)]
    command += ["--runtime-env", str(ROOT / "cluster" / "runtime_env.yaml"), *options]
    ended = cluster.run(*command, "--", "python", "-m", "sdxl_ray", *words, timeout=600, **environment)
    return ended.returncode, ended.stdout + ended.stderr


def _status(cluster: Cluster, job: str) -> str:
    ended = cluster.run("ray", "job", "status", "--address", cluster.dashboard, job)
    found = re.search(r"Status for job '[^']+': (\w+)|Job '[^']+' (succeeded|failed|was stopped)", ended.stdout)
    return (found[1] or found[2]) if found else ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_training_job_from_a_folder_of_ones_own(two_nodes: Cluster, embedded: Path, tmp_path: Path) -> None:
    """Photos, base and recipe are below the folder that is sent, and are named by relative paths."""
    mine = tmp_path / "mine"
    shutil.copytree(SUBJECTS / "robot", mine / "photos" / "robot", ignore=shutil.ignore_patterns("held_out"))
    shutil.copytree(SUBJECTS / "robot" / "held_out", mine / "photos" / "held out")
    shutil.copytree(embedded, mine / "base")
    (mine / "mine.yaml").write_text("extends: tiny_lora\ndata: {images: photos/robot, validation: photos/held out}\n")
    code, log = _submit(
        two_nodes, "train", "mine.yaml", *SUBJECT, *QUICK, "optim.steps=4", "--name", "job", "--address", "auto",
        "--base", "base", "--storage", str(tmp_path / "runs"), folder=mine,
    )  # fmt: skip
    assert code == 0, log
    assert "succeeded" in log and f"artifact  {tmp_path}/runs/job/artifact" in log
    assert Artifact.open(tmp_path / "runs" / "job" / "artifact").manifest.step == 4
    assert set(read(tmp_path / "runs" / "job" / "records", "steps")["workers"].to_pylist()) == {2}


@pytest.mark.slow
def test_photos_that_a_node_lacks_are_refused_before_a_worker_starts(
    two_nodes: Cluster, apart: Path, tmp_path: Path
) -> None:
    shutil.copytree(SUBJECTS / "robot", apart / "robot")
    command = ("sdxl-ray", "train", "tiny_lora", "data.images=robot", "--address", two_nodes.address)
    try:
        ended = two_nodes.run(*command, *SUBJECT, *QUICK, "--storage", str(tmp_path / "runs"), cwd=apart)
    finally:
        shutil.rmtree(apart / "robot")
    assert ended.returncode == 2, ended.stderr
    assert f"data.images = '{apart}/robot' is not on 1 of 2 nodes" in ended.stderr
    assert "starting" not in ended.stderr and not (tmp_path / "runs").exists()


@pytest.mark.exhaustive
def test_a_job_is_stopped_and_its_workers_end(two_nodes: Cluster, tmp_path: Path) -> None:
    code, log = _submit(
        two_nodes, "train", "tiny_lora", *SUBJECT, *QUICK, "data.images=subject:robot", "optim.steps=100000",
        "--name", "job", "--address", "auto", "--storage", str(tmp_path / "runs"),
        options=("--no-wait", "--submission-id", "long"),
    )  # fmt: skip
    assert code == 0, log
    checkpoints = tmp_path / "runs" / "job" / "checkpoints"
    wait_for("a checkpoint", lambda: any(checkpoints.glob("step-*/manifest.json")), 400)
    stopped = two_nodes.run("ray", "job", "stop", "--address", two_nodes.dashboard, "long")
    assert stopped.returncode == 0, stopped.stderr
    assert _status(two_nodes, "long").lower() in ("stopped", "was stopped")
    logs = two_nodes.run("ray", "job", "logs", "--address", two_nodes.dashboard, "long")
    assert "step" in logs.stdout
    trainers = "RayTrainWorker"
    wait_for(
        "the end of the workers",
        lambda: not any(trainers in " ".join(p.cmdline()[:1]) for node in two_nodes.nodes for p in node.processes()),
        60,
    )
    assert not (tmp_path / "runs" / "job" / "summary.json").exists()


@pytest.mark.slow
def test_nobody_without_the_token_submits_or_looks(two_nodes: Cluster) -> None:
    for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "b" * 64}):
        code, log = _submit(two_nodes, "recipes", **environment)
        assert code != 0 and "succeeded" not in log
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{two_nodes.dashboard}/api/jobs/", timeout=20)
    assert refused.value.code in (401, 403)


@pytest.mark.exhaustive
def test_a_comparison_and_a_search_are_jobs_too(two_nodes: Cluster, tmp_path: Path) -> None:
    few = (
        "optim.steps=4",
        "optim.warmup_steps=0",
        "parallel.workers=2",
        "data.resolution=32",
        "evaluation.num_inference_steps=1",
    )
    runs = ("--address", "auto", "--storage", str(tmp_path / "runs"))
    code, log = _submit(two_nodes, "compare", "demo", *few, *runs)
    assert code == 0, log
    assert (tmp_path / "runs" / "demo-comparison" / "report.html").is_file()
    trials = ("optim.steps=4", "optim.warmup_steps=0", "evaluation.every=2", "scheduler.grace_period=2")
    trials += ("budget.trials=2", "final.seeds=2", "final.class_images=2", "searcher.n_startup_trials=1")
    code, log = _submit(two_nodes, "tune", "tune_spaces/tiny_lora.yaml", *trials, *runs)
    assert code == 0, log
    assert (tmp_path / "runs" / "tiny_lora" / "best.yaml").is_file()


@pytest.mark.slow
def test_serve_is_deployed_by_the_cluster_file(two_nodes: Cluster, tmp_path: Path) -> None:
    """`cluster/serve.yaml` as it is, but for its port; the models that it names answer."""
    from tests.bucket import free_port

    plain = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    plain["http_options"]["port"] = port = free_port()
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(plain))
    deployed = two_nodes.run(
        "serve", "deploy", str(tmp_path / "serve.yaml"), "--address", two_nodes.dashboard, timeout=120
    )
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr

    def models() -> list[str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
                return [one["id"] for one in json.load(answer)["data"]]
        except OSError:
            return []

    wait_for("an answer of the service", models, 200)
    assert models() == list(plain["applications"][0]["args"]["variants"])
    two_nodes.run("serve", "shutdown", "--yes", "--address", two_nodes.dashboard)
