"""W&B and MLflow, through Ray's integrations; both are off unless the recipe names them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.errors import UserError
from sdxl_ray.io.rows import OnRow

_NUMBERS = {"step": ("loss", "lr", "grad_norm", "samples_per_s", "peak_bytes"), "validation": ("loss",)}


def require_trackers(recipe: Recipe) -> None:
    """Raise UserError, before anything starts, when a tracker is asked for whose package is not installed."""
    for name in ("wandb", "mlflow"):
        if getattr(recipe.resources, name) is not None and find_spec(name) is None:
            raise UserError(
                f"resources.{name} needs the {name} package: pip install 'sdxl-ray[{name}]', or set it to null"
            )


def trackers(recipe: Recipe, run: str) -> list[OnRow]:
    """One sink per tracker that the recipe names; call on one rank."""
    sinks: list[OnRow] = []
    if recipe.resources.wandb is not None:
        from ray.air.integrations.wandb import setup_wandb

        settings = recipe.resources.wandb
        board = setup_wandb(
            recipe.model_dump(mode="json"),
            project=settings.project,
            entity=settings.entity,
            trial_name=run,
            rank_zero_only=False,
        )
        sinks.append(lambda row: _log(row, lambda numbers, step: board.log(numbers, step=step)))
    if recipe.resources.mlflow is not None:
        from ray.air.integrations.mlflow import setup_mlflow

        flow = setup_mlflow(
            tracking_uri=recipe.resources.mlflow.tracking_uri,
            experiment_name=recipe.resources.mlflow.experiment,
            run_name=run,
            create_experiment_if_not_exists=True,
            rank_zero_only=False,
        )
        sinks.append(lambda row: _log(row, lambda numbers, step: flow.log_metrics(numbers, step=step)))
    return sinks


def _log(row: dict[str, Any], log: Callable[[dict[str, float], int], None]) -> None:
    names = _NUMBERS.get(row["kind"])
    if row["kind"] == "scores":
        log({f"quality/{name}": value for name, value in row["metrics"].items()}, row["step"])
    elif names:
        group = "train" if row["kind"] == "step" else row["kind"]
        log({f"{group}/{name}": row[name] for name in names if row[name] is not None}, row["step"])
