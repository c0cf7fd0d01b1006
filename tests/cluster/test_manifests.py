"""The files of `cluster/`: every one is loaded by its reader's schema, and says why it is as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sdxl_ray.doctor import kuberay
from sdxl_ray.doctor.cluster_files import environment
from sdxl_ray.errors import UserError
from tests.cluster.files import (
    CLOUDS,
    FOLDER,
    KUBERAY,
    OTHERS,
    objects,
    plain,
    text,
    torch_range,
    unshared,
    version_of_image,
)
from tests.conftest import Here

#: What follows one of these is somebody's choice: the line above must say why.
EXPLAINED = ("image", "InstanceType", "machineType", "vmSize", "sourceImage", "imageOffer", "region", "location")
EXPLAINED += ("max_workers", "idle_timeout_minutes", "project_id", "secretName", "serviceAccountName", "rayVersion")


def test_every_file_is_one_that_is_tested_here() -> None:
    found = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert found == sorted([*CLOUDS, *KUBERAY, *OTHERS])
    assert len(found) == 9
    assert {path.name for path in FOLDER.iterdir() if path.suffix != ".yaml"} == {"Containerfile"}
    for name, count in KUBERAY.items():
        assert len(kuberay.parse(plain(name), name)) == count


def _serve_configs() -> dict[str, dict[str, Any]]:
    (service,) = [found for found in objects() if found.kind == "RayService"]
    return {"serve": plain("serve"), "kuberay-service": yaml.safe_load(service.spec.serveConfigV2)}


@pytest.mark.parametrize("name", ["serve", "kuberay-service"])
def test_a_serve_file_is_what_serve_and_our_builder_read(name: str) -> None:
    from serve import ray_config

    assert ray_config.check(str(FOLDER / f"{name}.yaml")) == ["sdxl-ray"]
    plain = _serve_configs()[name]
    assert plain["http_options"] == {"host": "127.0.0.1" if name == "serve" else "0.0.0.0", "port": 8000}
    assert plain["applications"] == _serve_configs()["serve"]["applications"]
    assert plain["applications"][0]["import_path"] == "serve.app:build"
    for at in ("http_options", "applications.0", "applications.0.args"):
        spoilt = unshared(plain)
        place = spoilt
        for key in at.split("."):
            place = place[int(key) if key.isdigit() else key]
        place["prot"] = 1
        with pytest.raises(UserError, match="prot"):
            ray_config.check_plain(spoilt, name)


def test_the_runtime_environment_is_what_ray_reads() -> None:
    settings = plain("runtime_env")
    environment(settings, "runtime_env")
    assert {".git", ".venv", "runs"} <= set(settings["excludes"])
    assert "RAY_AUTH_TOKEN" not in settings["env_vars"]
    jobs = next(found for found in objects() if found.kind == "RayJob")
    assert yaml.safe_load(jobs.spec.runtimeEnvYAML) == {"env_vars": settings["env_vars"]}


def test_one_version_of_ray_everywhere() -> None:
    images = [
        line.split()[1] for line in (FOLDER / "Containerfile").read_text().splitlines() if line.startswith("FROM")
    ]
    images += [plain(name)["docker"]["image"] for name in CLOUDS]
    clusters = [cluster for found in objects() if (cluster := kuberay.cluster_of(found))]
    assert {version_of_image(image) for image in images} == {cluster.rayVersion for cluster in clusters}
    assert len(images) == 4


def test_the_image_is_built_from_what_is_here_and_holds_no_secret() -> None:
    lines = [line for line in (FOLDER / "Containerfile").read_text().splitlines() if line and not line.startswith("#")]
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert copied == ["pyproject.toml", "README.md", "LICENSE", "sdxl_ray", "serve", "tune_spaces"]
    assert all((FOLDER.parent / name).exists() for name in copied)
    assert [line for line in lines if line.startswith("USER")][-1] == "USER ray"
    assert "ENV RAY_AUTH_MODE=token" in lines and not any("AUTH_TOKEN" in line for line in lines)
    assert f'RUN pip install --no-cache-dir "{torch_range()}"' in lines
    assert 'RUN pip install --no-cache-dir ".[loadtest]"' in lines


@pytest.mark.parametrize("name", [*CLOUDS, *KUBERAY, *OTHERS])
def test_choices_are_explained(name: str) -> None:
    lines = text(name).splitlines()
    assert lines[0].startswith("# ")
    for number, line in enumerate(lines):
        key = line.strip().removeprefix("- ").partition(":")[0]
        if key in EXPLAINED:
            above = lines[number - 1].strip()
            assert above.startswith("#") or key in ("imageOffer", "max_workers"), f"{name}.yaml:{number + 1}: {line}"


def test_the_doctor_checks_a_file_before_it_is_sent(here: Here, tmp_path: Path) -> None:
    files = [str(FOLDER / f"{name}.yaml") for name in (*CLOUDS, *KUBERAY, *OTHERS)]
    code, out, err = here("doctor", *[word for path in files for word in ("--file", path)])
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == len(files)
    assert "RayJob sdxl-ray-train, RayJob sdxl-ray-tune, RayJob sdxl-ray-compare" in out
    assert "application sdxl-ray, RayService sdxl-ray" in out
    pod = tmp_path / "pod.yaml"
    pod.write_text(text("kuberay-cluster").replace("tolerations:", "os: {name: linux}\n          tolerations:"))
    assert (
        "what is inside spec.workerGroupSpecs.0.template.spec.os of sdxl-ray" in here("doctor", "--file", str(pod))[1]
    )
    for name, right, wrong, said in (
        ("aws", "idle_timeout_minutes:", "idle_timeout_minuts:", "'idle_timeout_minuts': did you mean 'idle_timeout_m"),
        ("kuberay-jobs", "submissionMode:", "submisionMode:", "'spec.submisionMode': did you mean 'submissionMode'"),
        ("kuberay-cluster", "kind: RayCluster", "kind: RayCuster", "no kind 'RayCuster': did you mean 'RayCluster'"),
        ("serve", "import_path:", "import_pat:", "import_pat"),
        ("runtime_env", "excludes:", "exclude:", "no setting 'exclude': did you mean 'excludes'"),
        ("runtime_env", 'OMP_NUM_THREADS: "1"', "OMP_NUM_THREADS: 1", "runtime_env['env_vars'] must be of type"),
        ("runtime_env", "env_vars:", "config: {eager_instal: true}\nenv_vars:", "did you mean 'eager_install'"),
        ("runtime_env", text("runtime_env"), "nothing: of it", "is none of Ray's files"),
        ("kuberay-jobs", "env_vars:", "env_vras:", "sdxl-ray-train: no setting 'env_vras': did you mean 'env_vars'"),
    ):
        spoilt = tmp_path / f"{name}.yaml"
        spoilt.write_text(text(name).replace(right, wrong))
        code, out, err = here("doctor", "--file", str(spoilt))
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1 and said in err, err
