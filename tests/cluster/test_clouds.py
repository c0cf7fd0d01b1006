"""Cluster files of AWS, Google and Azure, as Ray's cluster launcher and the clouds read them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sdxl_ray.doctor.clouds import READ_OF_CLOUD, READ_OF_PROVIDER, require_known
from sdxl_ray.doctor.cluster_files import launcher
from sdxl_ray.errors import UserError
from tests.cluster.files import CLOUDS, FOLDER, plain, text, torch_range
from tests.conftest import Here


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


@pytest.mark.parametrize("name", CLOUDS)
def test_the_machines_are_what_the_cloud_takes(name: str) -> None:
    config = launcher(plain(name), name)
    assert require_known(config, name) == [f"values that only {name} knows: machines, images, quotas, rights"]
    key, spot = {
        "aws": ("InstanceMarketOptions", {"MarketType": "spot"}),
        "azure": ("priority", "Spot"),
        "gcp": (
            "scheduling",
            [{"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE", "onHostMaintenance": "TERMINATE"}],
        ),
    }[name]
    kinds = [kind["node_config"] for kind in config["available_node_types"].values()]
    assert [kind.get("azure_arm_parameters", kind).get(key) for kind in kinds] == [None, spot]


@pytest.mark.parametrize(
    ("name", "right", "wrong", "said"),
    [
        ("aws", "region:", "regoin:", "no setting 'provider.regoin': did you mean 'region'?"),
        ("aws", "InstanceMarketOptions:", "InstanceMarketOption:", "did you mean 'InstanceMarketOptions'?"),
        ("aws", "VolumeSize:", "VolumSize:", "node_config.BlockDeviceMappings.0.Ebs.VolumSize': did you mean"),
        ("aws", "VolumeSize: 150", "VolumeSize: large", "Ebs.VolumeSize, value: large"),
        ("azure", "resource_group:", "resource_grop:", "'provider.resource_grop': did you mean 'resource_group'?"),
        ("azure", "vmSize:", "vmSze:", "azure_arm_parameters.vmSze': did you mean 'vmSize'?"),
        ("azure", "azure_arm_parameters:", "arm_parameters:", "did you mean 'azure_arm_parameters'?"),
        ("gcp", "project_id:", "project:", "'provider.project': did you mean 'project_id'?"),
        ("gcp", "machineType:", "machinetype:", "node_config.machinetype': did you mean 'machineType'?"),
        ("gcp", "diskSizeGb:", "diskSizeGB:", "disks.0.initializeParams.diskSizeGB': did you mean 'diskSizeGb'?"),
    ],
)
def test_a_misspelt_key_for_the_cloud_is_refused(
    here: Here, tmp_path: Path, name: str, right: str, wrong: str, said: str
) -> None:
    assert right in text(name)
    spoilt = tmp_path / f"{name}.yaml"
    spoilt.write_text(text(name).replace(right, wrong))
    code, out, err = here("doctor", "--file", str(spoilt))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {spoilt}: ") and said in err


def test_keys_that_ray_reads_and_its_schema_does_not_name_are_taken() -> None:
    """As its code of each cloud has them, so that a newer Ray which reads others is seen here."""
    import ray.autoscaler

    code = Path(ray.autoscaler.__file__).parent / "_private"
    read = {name: "".join(file.read_text() for file in folder.glob("*.py")) for name, folder in _folders(code).items()}
    for name in CLOUDS:
        for key in READ_OF_CLOUD[name] | READ_OF_PROVIDER:
            assert f'"{key}"' in read[name] or f'"{key}"' in read["any"], key
    aws = plain("aws")
    aws["provider"] |= {"key_pair": {"key_name": "mine"}, "use_external_head_ip": True}
    aws["available_node_types"]["head"]["node_config"]["SubnetIds"] = ["subnet-1"]
    assert len(require_known(launcher(aws, "aws"), "aws")) == 1


def _folders(code: Path) -> dict[str, Path]:
    return {"any": code, "aws": code / "aws", "azure": code / "_azure", "gcp": code / "gcp"}


def test_what_cannot_be_checked_here_is_said(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore", None)
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    file = str(FOLDER / "aws.yaml")
    code, out, err = here("doctor", "--json", "--file", file)
    assert (code, err) == (0, "")
    assert json.loads(out)[file]["not_checked"][0] == "node_config (pip install botocore)"
    local = tmp_path / "local.yaml"
    local.write_text("cluster_name: mine\nprovider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2]}\n")
    code, out, err = here("doctor", "--file", str(local))
    assert (code, out) == (0, f"{local}: cluster mine (not checked: provider and node_config of 'local')\n")
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("cluster_name: mine\nprovider: {type: awss}\n")
    code, out, err = here("doctor", "--file", str(unknown))
    assert (code, err) == (2, f"error: {unknown}: Unsupported node provider: awss\n")


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
    from sdxl_ray.io.storage import is_url

    config = launcher(plain(name), name)
    (storage,) = [o for o in config["docker"]["run_options"] if o.startswith("--env SDXL_RAY_STORAGE=")]
    assert is_url(storage.partition("=")[2])
    assert config["file_mounts"]["/home/ray/sdxl-ray"] == "."
    torch, project = config["setup_commands"][:2]
    assert project == 'pip install --quiet "/home/ray/sdxl-ray[loadtest]"'  # compare ends with a load test
    assert torch == f'pip install --quiet "{torch_range()}"'
