"""The files of `cluster/`: every one is loaded, by the schema that its reader uses, with unknown keys refused."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from sdxl_ray.config import load, override, parse_assignments
from sdxl_ray.errors import UserError
from tests.cluster import kuberay

FOLDER = Path(__file__).parents[2] / "cluster"
CLOUDS = ("aws", "gcp", "azure")
KUBERAY = {"kuberay-cluster": 1, "kuberay-jobs": 3, "kuberay-network": 1, "kuberay-service": 1}
OTHERS = ("runtime_env", "serve")

#: What follows one of these is somebody's choice: the line above must say why.
EXPLAINED = ("image", "InstanceType", "machineType", "vmSize", "sourceImage", "imageOffer", "region", "location")
EXPLAINED += ("max_workers", "idle_timeout_minutes", "project_id", "secretName", "serviceAccountName", "rayVersion")


def _text(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text()


def _plain(name: str) -> Any:
    return yaml.safe_load(_text(name))


def _objects() -> list[Any]:
    return [found for name in KUBERAY for found in kuberay.parse(_plain(name))]


def test_every_file_is_one_that_is_tested_here() -> None:
    found = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert found == sorted([*CLOUDS, *KUBERAY, *OTHERS])
    assert len(found) == 9
    assert {path.name for path in FOLDER.iterdir() if path.suffix != ".yaml"} == {"Containerfile"}
    for name, count in KUBERAY.items():
        assert len(kuberay.parse(_plain(name))) == count


# Ray's cluster launcher


def _launcher(plain: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` reads it. Raises jsonschema's ValidationError."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(copy.deepcopy(plain))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cluster_file_is_what_ray_reads(name: str) -> None:
    config = _launcher(_plain(name))
    assert config["provider"]["type"] == name
    types = config["available_node_types"]
    head, workers = types[config["head_node_type"]], types["gpu_worker"]
    assert head["max_workers"] == 0 and "GPU" not in head["resources"]
    assert workers["min_workers"] == 0 < workers["max_workers"] == config["max_workers"]
    assert workers["resources"]["GPU"] == 1


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("at", [(), ("docker",), ("available_node_types", "gpu_worker"), ("auth",)])
def test_an_unknown_key_of_a_cluster_file_is_refused(name: str, at: tuple[str, ...]) -> None:
    plain = _plain(name)
    place = plain
    for key in at:
        place = place[key]
    place["max_wrokers"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        _launcher(plain)


def test_the_machines_of_aws_are_what_ec2_takes() -> None:
    """Ray passes node_config on as it is; botocore's own model of RunInstances knows every key of it."""
    import botocore.session
    from botocore.validate import ParamValidator

    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in _plain("aws")["available_node_types"].values():
        assert not ParamValidator().validate({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, shape).has_errors()
    spoilt = {**kind["node_config"], "InstanceKind": "g6e.2xlarge", "MinCount": 1, "MaxCount": 1}
    assert "InstanceKind" in ParamValidator().validate(spoilt, shape).generate_report()
    market = [
        kind["node_config"].get("InstanceMarketOptions") for kind in _plain("aws")["available_node_types"].values()
    ]
    assert market == [None, {"MarketType": "spot"}]


def test_the_machines_of_azure_are_what_rays_template_takes() -> None:
    import json

    import ray.autoscaler._private._azure as azure

    template = json.loads((Path(azure.__file__).parent / "azure-vm-template.json").read_text())
    kinds = [kind["node_config"] for kind in _plain("azure")["available_node_types"].values()]
    for kind in kinds:
        assert set(kind) == {"azure_arm_parameters"}
        assert set(kind["azure_arm_parameters"]) <= set(template["parameters"])
    assert [kind["azure_arm_parameters"].get("priority") for kind in kinds] == [None, "Spot"]


def test_the_machines_of_google_are_what_compute_engine_takes() -> None:
    """The keys of `instances.insert` (Compute Engine API v1) that we use; others would be refused by the API."""
    known = {"machineType", "disks", "metadata", "scheduling", "serviceAccounts"}
    kinds = [kind["node_config"] for kind in _plain("gcp")["available_node_types"].values()]
    for kind in kinds:
        assert set(kind) <= known
        for disk in kind["disks"]:
            assert set(disk) == {"boot", "autoDelete", "type", "initializeParams"}
            assert set(disk["initializeParams"]) == {"diskSizeGb", "sourceImage"}
    assert [kind.get("scheduling") for kind in kinds] == [
        None,
        [{"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE", "onHostMaintenance": "TERMINATE"}],
    ]


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cluster_file_is_closed_to_strangers(name: str) -> None:
    """X3: the token is on in the container, the token file travels, jobs are taken on loopback, 22 is the only port."""
    config = _launcher(_plain(name))
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start and "--dashboard-port=8265" in start and "--port=6379" in start
    assert "security_group" not in config["provider"]
    assert "0.0.0.0" not in _text(name) and "RAY_AUTH_TOKEN=" not in _text(name)


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cluster_file_names_its_storage_by_url_and_installs_this_project(name: str) -> None:
    from sdxl_ray.storage import is_url

    config = _launcher(_plain(name))
    (storage,) = [o for o in config["docker"]["run_options"] if o.startswith("--env SDXL_RAY_STORAGE=")]
    assert is_url(storage.partition("=")[2])
    assert config["file_mounts"]["/home/ray/sdxl-ray"] == "."
    torch, project = config["setup_commands"][:2]
    assert project == "pip install --quiet /home/ray/sdxl-ray"
    assert torch == f'pip install --quiet "{_torch_range()}"'


# KubeRay


@pytest.mark.parametrize("name", KUBERAY)
def test_an_unknown_key_of_a_kuberay_file_is_refused(name: str) -> None:
    """At every mapping of the file, one after another."""
    places = 0
    for spoilt, path in _spoilt(_plain(name)):
        if path[-1:] in (("labels",), ("matchLabels",), ("rayStartParams",), ("requests",), ("limits",)):
            continue  # any key may be there
        with pytest.raises((ValidationError, AssertionError)):
            kuberay.parse(spoilt)
        places += 1
    assert places >= 7


def _spoilt(plain: Any) -> Iterator[tuple[Any, tuple[str | int, ...]]]:
    def places(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
        if isinstance(value, dict):
            yield path
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict | list):
                yield from places(inner, (*path, key))

    for path in places(plain, ()):
        place = spoilt = _unshared(plain)
        for key in path:
            place = place[key]
        place["replcias"] = 1
        yield spoilt, path


def _unshared(value: Any) -> Any:
    """A copy in which what YAML's anchors share is apart."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def test_every_kuberay_cluster_asks_for_the_token_of_a_secret() -> None:
    """X3. Where KubeRay has to reach the dashboard from its own pod, a policy says that nobody else does."""
    clusters = [(found, kuberay.cluster_of(found)) for found in _objects()]
    asked = [(found, cluster) for found, cluster in clusters if cluster is not None]
    assert len(asked) == 5
    (policy,) = [found.spec for found in _objects() if found.kind == "NetworkPolicy"]
    for found, cluster in asked:
        assert cluster.authOptions.mode == "token" and cluster.authOptions.secretName == "sdxl-ray-token"
        host = cluster.headGroupSpec.rayStartParams["dashboard-host"]
        assert host == ("127.0.0.1" if found.kind == "RayCluster" else "0.0.0.0")
        for pod in cluster.pods:
            assert policy.podSelector.matchLabels.items() <= pod.metadata.labels.items()
            assert pod.spec.securityContext.runAsNonRoot
            assert not any(one.securityContext.allowPrivilegeEscalation for one in pod.spec.containers)
    assert policy.policyTypes == ["Ingress"]
    ours, operator, clients = policy.ingress
    assert ours.from_[0].podSelector == policy.podSelector and ours.from_[0].namespaceSelector is None
    assert operator.from_[0].podSelector.matchLabels == {"app.kubernetes.io/name": "kuberay-operator"}
    assert {port.port for port in operator.ports} == {8265, 52365, 8000}
    assert clients.from_[0].namespaceSelector is None and {port.port for port in clients.ports} == {8000}
    (service,) = [cluster for found, cluster in asked if found.kind == "RayService"]
    for pod in service.pods:
        (keys,) = [one for one in pod.spec.containers[0].env if one.name == "SDXL_RAY_API_KEYS"]
        assert keys.valueFrom.secretKeyRef.name == "sdxl-ray-api-keys"
    assert "kind: Secret" not in "".join(_text(name) for name in KUBERAY)


def test_the_head_has_no_gpu_and_workers_scale() -> None:
    for found in _objects():
        if (cluster := kuberay.cluster_of(found)) is None:
            continue
        assert cluster.enableInTreeAutoscaling and cluster.headGroupSpec.rayStartParams["num-gpus"] == "0"
        assert not any(
            "gpu" in name for one in cluster.headGroupSpec.template.spec.containers for name in one.resources.limits
        )
        (group,) = cluster.workerGroupSpecs
        (worker,) = group.template.spec.containers
        assert worker.resources.limits["nvidia.com/gpu"] == worker.resources.requests["nvidia.com/gpu"] == "1"
        assert group.maxReplicas > group.minReplicas
        assert {image for pod in cluster.pods for image in [one.image for one in pod.spec.containers]} == {worker.image}


def test_jobs_run_the_same_commands() -> None:
    from sdxl_ray.__main__ import COMMANDS
    from sdxl_ray.experiment import load_experiment

    jobs = {found.metadata.labels["sdxl-ray/job"]: found.spec for found in _objects() if found.kind == "RayJob"}
    assert set(jobs) == {"train", "tune", "compare"}
    for name, job in jobs.items():
        words = shlex.split(job.entrypoint)
        assert words[:4] == ["python", "-m", "sdxl_ray", name]
        assert words[words.index("--address") + 1] == "auto"
        assert job.runtimeEnvYAML == jobs["train"].runtimeEnvYAML
        _require_runtime_env(yaml.safe_load(job.runtimeEnvYAML))
        if name == "train":
            override(load(words[4]), parse_assignments([word for word in words if "=" in word])).require_complete()
        if name == "compare":
            load_experiment(words[4])
    assert {"train", "compare"} <= set(COMMANDS)


# Serve, jobs, the image


def _serve_configs() -> dict[str, dict[str, Any]]:
    (service,) = [found for found in _objects() if found.kind == "RayService"]
    return {"serve": _plain("serve"), "kuberay-service": yaml.safe_load(service.spec.serveConfigV2)}


@pytest.mark.parametrize("name", ["serve", "kuberay-service"])
def test_a_serve_file_is_what_serve_and_our_builder_read(name: str) -> None:
    from serve import rayfile

    assert rayfile.check(str(FOLDER / f"{name}.yaml")) == ["sdxl-ray"]
    plain = _serve_configs()[name]
    assert plain["http_options"] == {"host": "127.0.0.1" if name == "serve" else "0.0.0.0", "port": 8000}
    assert plain["applications"] == _serve_configs()["serve"]["applications"]
    assert plain["applications"][0]["import_path"] == "serve.app:build"
    for at in ("http_options", "applications.0", "applications.0.args"):
        spoilt = _unshared(plain)
        place = spoilt
        for key in at.split("."):
            place = place[int(key) if key.isdigit() else key]
        place["prot"] = 1
        with pytest.raises(UserError, match="prot"):
            rayfile.check_plain(spoilt, name)


def _require_runtime_env(plain: dict[str, Any]) -> None:
    from ray.runtime_env import RuntimeEnv

    assert set(plain) <= RuntimeEnv.known_fields
    RuntimeEnv(**plain)


def test_the_runtime_environment_is_what_ray_reads() -> None:
    plain = _plain("runtime_env")
    _require_runtime_env(plain)
    assert {".git", ".venv", "runs"} <= set(plain["excludes"])
    assert "RAY_AUTH_TOKEN" not in plain["env_vars"]
    jobs = next(found for found in _objects() if found.kind == "RayJob")
    assert yaml.safe_load(jobs.spec.runtimeEnvYAML) == {"env_vars": plain["env_vars"]}


def test_one_version_of_ray_everywhere() -> None:
    images = [
        line.split()[1] for line in (FOLDER / "Containerfile").read_text().splitlines() if line.startswith("FROM")
    ]
    images += [_plain(name)["docker"]["image"] for name in CLOUDS]
    clusters = [cluster for found in _objects() if (cluster := kuberay.cluster_of(found))]
    assert {kuberay.version_of_image(image) for image in images} == {cluster.rayVersion for cluster in clusters}
    assert len(images) == 4


def test_the_image_is_built_from_what_is_here_and_holds_no_secret() -> None:
    lines = [line for line in (FOLDER / "Containerfile").read_text().splitlines() if line and not line.startswith("#")]
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert copied == ["pyproject.toml", "README.md", "LICENSE", "sdxl_ray", "serve"]
    assert all((FOLDER.parent / name).exists() for name in copied)
    assert [line for line in lines if line.startswith("USER")][-1] == "USER ray"
    assert "ENV RAY_AUTH_MODE=token" in lines and not any("AUTH_TOKEN" in line for line in lines)
    assert f'RUN pip install --no-cache-dir "{_torch_range()}"' in lines


def _torch_range() -> str:
    import tomllib

    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    return next(str(one) for one in project["dependencies"] if one.startswith("torch>"))


@pytest.mark.parametrize("name", [*CLOUDS, *KUBERAY, *OTHERS])
def test_choices_are_explained(name: str) -> None:
    lines = _text(name).splitlines()
    assert lines[0].startswith("# ")
    for number, line in enumerate(lines):
        key = line.strip().removeprefix("- ").partition(":")[0]
        if key in EXPLAINED:
            above = lines[number - 1].strip()
            assert above.startswith("#") or key in ("imageOffer", "max_workers"), f"{name}.yaml:{number + 1}: {line}"
