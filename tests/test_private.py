"""Private names of Ray, DeepSpeed and Optuna are used in the modules that gather them, and nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GATHERED = {
    "sdxl_ray/distributed/_deepspeed_private.py",
    "sdxl_ray/distributed/_ray_private.py",
    "sdxl_ray/search/_optuna_private.py",
    "serve/_ray_private.py",
}
LIBRARIES = r"(ray|deepspeed|optuna)\b"
#: A part that begins with an underscore (a module's file is no secret), and what Ray keeps for itself without one.
PRIVATE = re.compile(LIBRARIES + r".*\._(?!_file__)|" + r"ray\.core\.generated|ray\.train\.v2|.*_internal_kv")
#: Of objects that these libraries made. `ds_numel` is read in `models/` too, which has no DeepSpeed.
ATTRIBUTES = {
    *("basic_optimizer", "ds_shape", "ds_tensor", "persistent_parameters"),
    *("_clear_fp32_optimizer_param_groups", "_hp_optimizer_states_linked", "_lazy_init_hp_params_optimizer_state"),
    *("_set_fp32_optimizer_param_groups", "_contains", "_get_generation_key"),
}


def _private(source: str) -> Iterator[str]:
    """The uses of private names in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            if node.attr in ATTRIBUTES:
                yield names[0]
        else:
            continue
        yield from (name for name in names if PRIVATE.match(name))


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private.services import get_node",
        "from ray.serve.context import _get_global_client",
        "import ray.autoscaler._private._azure as azure",
        "from ray.train.v2.api.exceptions import TrainingFailedError",
        "ray._private.state.state.get_cluster_config()",
        "deepspeed.ops.__compatible_ops__['x'] = False",
        "self._engine.basic_optimizer.state",
        "sampler._get_generation_key()",
    ],
)
def test_a_private_use_is_seen(source: str) -> None:
    assert list(_private(source))


def test_private_names_are_used_where_they_are_gathered() -> None:
    files = [file for package in ("sdxl_ray", "serve") for file in sorted((ROOT / package).rglob("*.py"))]
    found = {
        str(file.relative_to(ROOT)): uses for file in files if (uses := [*_private(file.read_text(encoding="utf-8"))])
    }
    assert found.keys() == GATHERED, {name: uses for name, uses in found.items() if name not in GATHERED}
