"""What a launcher's file says to its cloud, key by key: `provider`, and the `node_config` of every kind of machine.

Ray's own schema lets any key of both through. No cloud is asked: what only it knows is said to be unchecked. Names and
types are those that botocore and Ray itself carry along; Google's, which neither does, are in `google_instance.json`
(the body of `instances.insert`, Compute Engine API v1, without what is only ever answered).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdxl_ray.distributed._ray_private import azure_template
from sdxl_ray.errors import UserError, nearest

#: What Ray's code reads of `provider` beyond the properties of its schema, for any cloud and for one.
READ_OF_PROVIDER = frozenset({"disable_launch_config_check", "foreground_node_launch", "use_external_head_ip"})
READ_OF_CLOUD: dict[str, frozenset[str]] = {
    "aws": frozenset({"aws_credentials", "key_pair"}),
    "azure": frozenset({"msi", "msi_name", "msi_resource_group", "nsg", "subnet", "subnet_mask", "unique_id"}),
    "gcp": frozenset(),
}
#: What Ray takes for itself from a `node_config` before the cloud sees the rest.
READ_OF_AWS = frozenset({"SubnetIds"})
READ_OF_AZURE = frozenset({"availability_zone"})

#: What may stand in a mapping, each with what may stand below it; None where any key may.
Members = Callable[[Any], "Mapping[str, Any] | None"]


def require_known(config: Mapping[str, Any], where: str) -> list[str]:
    """What could not be checked of a cluster that Ray's schema accepts. Raises UserError for an unknown key."""
    provider = config["provider"]
    cloud = str(provider["type"])
    if cloud not in READ_OF_CLOUD:
        return [f"provider and node_config of {cloud!r}"]
    known = {**_schema_of_provider(), **dict.fromkeys(READ_OF_PROVIDER | READ_OF_CLOUD[cloud])}
    _require({"provider": _written(provider)}, {"provider": known}, _plain, "", where)
    unchecked = [f"provider.{name}" for name in ("cloudwatch",) if name in provider]
    for name, kind in config.get("available_node_types", {}).items():
        place = f"available_node_types.{name}.node_config"
        unchecked += _MACHINES[cloud](kind["node_config"], place, where)
    return [*dict.fromkeys(unchecked), f"values that only {cloud} knows: machines, images, quotas, rights"]


def _aws(machine: dict[str, Any], place: str, where: str) -> Iterator[str]:
    """As botocore's model of EC2 has RunInstances, which gets what Ray does not take for itself."""
    try:
        import botocore.session
        from botocore.validate import ParamValidator
    except ImportError:
        yield "node_config (pip install botocore)"
        return
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    sent = {key: value for key, value in machine.items() if key not in READ_OF_AWS}
    _require(sent, shape, _of_shape, place, where)
    wrong = ParamValidator().validate({**sent, "MinCount": 1, "MaxCount": 1}, shape)
    if wrong.has_errors():
        raise UserError(f"{where}: {place}: {wrong.generate_report().splitlines()[0]}")


def _azure(machine: dict[str, Any], place: str, where: str) -> list[str]:
    """As Ray's template of a deployment has its parameters."""
    parameters = dict.fromkeys({*azure_template()["parameters"], *READ_OF_AZURE})
    _require(machine, {"azure_arm_parameters": parameters, "tags": None}, _plain, place, where)
    return []


def _google(machine: dict[str, Any], place: str, where: str) -> list[str]:
    if "machineType" not in machine and machine.keys() & {"acceleratorType", "acceleratorConfig"}:
        return ["node_config of a TPU"]
    instance = json.loads(Path(__file__).with_name("google_instance.json").read_text(encoding="utf-8"))
    _require(machine, instance, _plain, place, where)
    return []


_MACHINES = {"aws": _aws, "azure": _azure, "gcp": _google}


def _require(value: Any, known: Any, members: Members, place: str, where: str) -> None:
    """Every key is one of those that may stand there. An entry of a list is as the list."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            _require(entry, known, members, f"{place}.{index}", where)
        return
    below = members(known)
    if not isinstance(value, Mapping) or below is None:
        return
    for key, inner in value.items():
        here = f"{place}.{key}" if place else str(key)
        if key not in below:
            raise UserError(f"{where}: no setting {here!r}: {nearest(str(key), below)}")
        _require(inner, below[key], members, here, where)


def _plain(known: Any) -> Mapping[str, Any] | None:
    return known if isinstance(known, Mapping) else None


def _of_shape(shape: Any) -> Mapping[str, Any] | None:
    """Of a shape of botocore; that of a list has one of its entries inside."""
    while shape.type_name == "list":
        shape = shape.member
    return shape.members if shape.type_name == "structure" else None


def _schema_of_provider() -> dict[str, None]:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    return dict.fromkeys(schema["properties"]["provider"]["properties"])


def _written(provider: Mapping[str, Any]) -> dict[str, Any]:
    """Without what Ray itself adds to a file that it has started."""
    return {key: value for key, value in provider.items() if not str(key).startswith("_")}
