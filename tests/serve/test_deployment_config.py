"""Ray Serve's settings in a serve configuration: passed through, validated by Ray, merged, and never half known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from sdxl_ray.errors import UserError
from serve.app import application
from serve.config import ServeConfig, override, parse
from serve.deployment_config import merged, replica_bounds
from serve.replica.placement import plan
from tests.conftest import Here

SCALING = {"min_replicas": 1, "max_replicas": 2}


def _options(config: ServeConfig, name: str) -> Any:
    """What Ray Serve holds of a deployment of the built application."""
    ingress = application(config)._bound_deployment
    groups = ingress.init_args[2]
    return ingress if name == "ingress" else groups[name]._bound_deployment


def test_settings_reach_ray_serve(artifacts: dict[str, Path]) -> None:
    config = parse(
        {
            "variants": {
                "base": None,
                "whole": {"artifact": str(artifacts["whole"]), "deployment_config": {"num_replicas": 3}},
            },
            "deployment_config": {
                "autoscaling_config": {**SCALING, "target_ongoing_requests": 4},
                "max_ongoing_requests": 7,
                "max_queued_requests": 9,
                "ray_actor_options": {"num_cpus": 0.5},
                "health_check_period_s": 3,
                "graceful_shutdown_timeout_s": 11,
            },
            "ingress": {"deployment_config": {"num_replicas": 2, "max_ongoing_requests": 50}},
        }
    )
    shared, whole, ingress = (_options(config, name) for name in ("weights", "weights-whole", "ingress"))
    scaling = shared._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 2, 4)
    assert whole._deployment_config.autoscaling_config is None
    assert whole.num_replicas == 3
    for deployment in (shared, whole):
        assert (deployment.max_ongoing_requests, deployment.max_queued_requests) == (7, 9)
        # What is not named keeps our default: no GPU here, and a longer health check than Ray's own.
        assert deployment.ray_actor_options == {"num_cpus": 0.5, "num_gpus": 0.0}
        found = deployment._deployment_config
        assert (found.health_check_period_s, found.graceful_shutdown_timeout_s) == (3, 11)
    assert (ingress.num_replicas, ingress.max_ongoing_requests) == (2, 50)


@pytest.mark.parametrize(
    ("setting", "value", "line"),
    [
        ("num_replica", 2, "no setting 'deployment_config.num_replica': did you mean 'num_replicas'?"),
        ("num_replicas", 0, "deployment_config.num_replicas = 0: input should be greater than 0"),
        ("num_replicas", "many", '`num_replicas` must be an int or "auto", but got: many'),
        ("max_queued_requests", 0, "must be -1 (no limit) or a positive integer"),
        (
            "autoscaling_config.min_replica",
            1,
            "'deployment_config.autoscaling_config.min_replica': did you mean 'min_r",
        ),
        (
            "autoscaling_config.max_replicas",
            "x",
            "deployment_config.autoscaling_config.max_replicas = 'x': input should",
        ),
        (
            "autoscaling_config",
            {"min_replicas": 3, "max_replicas": 1},
            "max_replicas (1) must be greater than or equal",
        ),
        (
            "ray_actor_options.num_cpus",
            -1,
            "deployment_config.ray_actor_options.num_cpus = -1: input should be greater",
        ),
        ("ray_actor_options.num_gpu", 1, "'deployment_config.ray_actor_options.num_gpu': did you mean 'num_gpus'?"),
        ("max_constructor_retry_count", 0, "deployment_config.max_constructor_retry_count = 0: input should be"),
        ("name", "mine", "no setting 'deployment_config.name'"),
        ("user_config", {"a": 1}, "deployment_config.user_config: these deployments cannot be reconfigured"),
    ],
)
@pytest.mark.parametrize("section", ["", "ingress."])
def test_what_ray_refuses_is_one_line_with_the_path(section: str, setting: str, value: object, line: str) -> None:
    with pytest.raises(UserError) as wrong:
        override(ServeConfig(), {f"{section}deployment_config.{setting}": value})
    assert line.replace("deployment_config", f"{section}deployment_config", 1) in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_number_and_autoscaling_exclude_each_other() -> None:
    both = {"deployment_config": {"num_replicas": 2, "autoscaling_config": SCALING}}
    with pytest.raises(UserError, match="num_replicas is not allowed when autoscaling_config is provided"):
        parse(both)
    assert merged({"autoscaling_config": SCALING, "max_surge_percent": 5}, {"num_replicas": 2}) == {
        "num_replicas": 2,
        "max_surge_percent": 5,
    }
    assert merged({"num_replicas": 2}, {"autoscaling_config": SCALING}) == {"autoscaling_config": SCALING}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("replicas.count", "deployment_config.num_replicas"),
        ("replicas.cpus", "deployment_config.ray_actor_options.num_cpus"),
        ("replicas.gpus", "deployment_config.ray_actor_options.num_gpus"),
        ("replicas.surge_percent", "deployment_config.max_surge_percent"),
        ("replicas.start_attempts", "deployment_config.max_constructor_retry_count"),
        ("ingress.replicas", "ingress.deployment_config.num_replicas"),
        ("ingress.cpus", "ingress.deployment_config.ray_actor_options.num_cpus"),
        ("ingress.max_connections", "ingress.deployment_config.max_ongoing_requests"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(old: str, new: str) -> None:
    section, _, name = old.partition(".")
    for wrong in (lambda: override(ServeConfig(), {old: 1}), lambda: parse({section: {name: 1}})):
        with pytest.raises(UserError, match=f"no setting '{section}.*: it is now .*{new}"):
            wrong()


def test_a_variant_has_settings_of_its_own_only_with_replicas_of_its_own(artifacts: dict[str, Path]) -> None:
    own = {"deployment_config": {"num_replicas": 2}}
    lora = {"artifact": str(artifacts["round"]), **own}
    with pytest.raises(UserError, match="the base shares its replicas: set the file's own deployment_config"):
        parse({"variants": {"base": own}})
    with pytest.raises(UserError, match=r"variants.dog.deployment_config: a LoRA shares .*: set own_replicas too"):
        plan(parse({"variants": {"base": None, "dog": lora}}))
    layout = plan(parse({"variants": {"base": None, "dog": {**lora, "own_replicas": True}}}))
    assert {name: group.deployment_config for name, group in layout.groups.items()} == {
        "weights": {},
        "weights-dog": {"num_replicas": 2},
    }


def test_the_largest_request_fits_while_the_fewest_replicas_run() -> None:
    ingresses = {"ingress.deployment_config.num_replicas": 4, "queue.images": 36}
    override(ServeConfig(), {**ingresses, "deployment_config.num_replicas": 2})
    with pytest.raises(UserError, match="give at least 37"):
        override(ServeConfig(), {**ingresses, "deployment_config.autoscaling_config": SCALING})


@pytest.mark.parametrize(
    ("config", "bounds"),
    [
        ({}, (1, 1)),
        ({"num_replicas": 3}, (3, 3)),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 4}}, (1, 4)),
        ({"autoscaling_config": {"min_replicas": 0, "max_replicas": 2}}, (0, 2)),
        (
            {"num_replicas": "auto"},
            (AutoscalingConfig.default().min_replicas, AutoscalingConfig.default().max_replicas),
        ),
    ],
)
def test_the_bounds_are_those_of_ray(config: dict[str, Any], bounds: tuple[int, int]) -> None:
    assert replica_bounds(config) == bounds


def test_a_configuration_without_ray_settings_is_read_without_ray(here: Here) -> None:
    code = "import sys; from serve.config import load; load('compare'); print({'ray', 'torch'} & {*sys.modules})"
    reported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert reported.stdout == "set()\n"
    code_, out, _ = here("serve", "--schema")
    assert code_ == 0 and "autoscaling_config" in out
