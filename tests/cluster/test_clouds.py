"""Cluster files of AWS, Google and Azure, as Ray's cluster launcher and the clouds read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdxl_ray.distributed.clusterfiles import launcher
from sdxl_ray.errors import UserError
from tests.cluster.files import CLOUDS, plain, text, torch_range


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cluster_file_is_what_ray_reads(name: str) -> None:
    config = launcher(plain(name), name)
    assert config["provider"]["type"] == name
    types = config["available_node_types"]
    head, workers = types[config["head_node_type"]], types["gpu_worker"]
    assert head["max_workers"] == 0 and "GPU" not in head["resources"]
    assert workers["min_workers"] == 0 < workers["max_workers"] == config["max_workers"]
    assert workers["resources"]["GPU"] == 1


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("at", [(), ("docker",), ("available_node_types", "gpu_worker"), ("auth",)])
def test_an_unknown_key_of_a_cluster_file_is_refused(name: str, at: tuple[str, ...]) -> None:
    settings = plain(name)
    place = settings
    for key in at:
        place = place[key]
    place["max_wrokers"] = 3
    with pytest.raises(UserError, match=r"^file: .*max_wrokers") as refused:
        launcher(settings, "file")
    assert "\n" not in str(refused.value)


def test_the_machines_of_aws_are_what_ec2_takes() -> None:
    """Ray passes node_config on as it is; botocore's own model of RunInstances knows every key of it."""
    import botocore.session
    from botocore.validate import ParamValidator

    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in plain("aws")["available_node_types"].values():
        assert not ParamValidator().validate({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, shape).has_errors()
    spoilt = {**kind["node_config"], "InstanceKind": "g6e.2xlarge", "MinCount": 1, "MaxCount": 1}
    assert "InstanceKind" in ParamValidator().validate(spoilt, shape).generate_report()
    market = [
        kind["node_config"].get("InstanceMarketOptions") for kind in plain("aws")["available_node_types"].values()
    ]
    assert market == [None, {"MarketType": "spot"}]


def test_the_machines_of_azure_are_what_rays_template_takes() -> None:
    import json

    import ray.autoscaler._private._azure as azure

    template = json.loads((Path(azure.__file__).parent / "azure-vm-template.json").read_text())
    kinds = [kind["node_config"] for kind in plain("azure")["available_node_types"].values()]
    for kind in kinds:
        assert set(kind) == {"azure_arm_parameters"}
        assert set(kind["azure_arm_parameters"]) <= set(template["parameters"])
    assert [kind["azure_arm_parameters"].get("priority") for kind in kinds] == [None, "Spot"]


def test_the_machines_of_google_are_what_compute_engine_takes() -> None:
    """The keys of `instances.insert` (Compute Engine API v1) that we use; others would be refused by the API."""
    known = {"machineType", "disks", "metadata", "scheduling", "serviceAccounts"}
    kinds = [kind["node_config"] for kind in plain("gcp")["available_node_types"].values()]
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
    config = launcher(plain(name), name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start and "--dashboard-port=8265" in start and "--port=6379" in start
    assert "security_group" not in config["provider"]
    assert "0.0.0.0" not in text(name) and "RAY_AUTH_TOKEN=" not in text(name)


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cluster_file_names_its_storage_by_url_and_installs_this_project(name: str) -> None:
    from sdxl_ray.storage import is_url

    config = launcher(plain(name), name)
    (storage,) = [o for o in config["docker"]["run_options"] if o.startswith("--env SDXL_RAY_STORAGE=")]
    assert is_url(storage.partition("=")[2])
    assert config["file_mounts"]["/home/ray/sdxl-ray"] == "."
    torch, project = config["setup_commands"][:2]
    assert project == 'pip install --quiet "/home/ray/sdxl-ray[loadtest]"'  # compare ends with a load test
    assert torch == f'pip install --quiet "{torch_range()}"'
