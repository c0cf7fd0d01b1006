"""A run small enough for a test: the embedded base (loaded once), five images of 32 pixels, one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import Base
from sdxl_ray.io.collectives import SingleProcess
from sdxl_ray.models.base_model import Components, load_components, locate, own_memory
from sdxl_ray.training.engine import LocalEngine
from sdxl_ray.training.run_directory import scan_images
from sdxl_ray.training.trainer import RunContext, Splits, run_training
from tests.running import Killed, Outcome, Train, draw_images


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of one subject."""
    return draw_images(
        tmp_path_factory.mktemp("data") / "photos", [(48, 48), (64, 40), (40, 40), (56, 56), (36, 36)], 0
    )


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of its class."""
    return draw_images(tmp_path_factory.mktemp("data") / "others", [(40, 40), (48, 48), (44, 44), (64, 64)], 1)


@pytest.fixture(scope="session")
def tiny() -> Components:
    """The embedded base as it was loaded; tests that change it take `components`."""
    parts = load_components(locate(Base()), Base(), dtype=torch.float32, device="cpu")
    own_memory(parts.unet, parts.vae, *parts.text_encoders)
    return parts


@pytest.fixture
def components(tiny: Components) -> Components:
    """A copy of the embedded base."""
    return copy.deepcopy(tiny)


@pytest.fixture
def recipe(photos: Path) -> Recipe:
    """Four steps of LoRA on the photos; `override` it."""
    return override(
        Recipe(),
        {
            "data.images": str(photos),
            "data.subject": "sks dog",
            "data.class_name": "dog",
            "data.resolution": 32,
            "tuning.rank": 4,
            "optim.lr": 1e-3,
            "optim.steps": 4,
            "evaluation.every": 0,
            "evaluation.draws": 1,
            "evaluation.prompts": ["sks dog"],
            "evaluation.num_inference_steps": 1,
            "evaluation.guidance_scale": 1.0,
            "parallel.engine": "local",
            "parallel.precision": "fp32",
            "artifact.dtype": "fp32",
        },
    )


@pytest.fixture
def train(tmp_path: Path, tiny: Components, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`train(recipe, "name")` runs `run_training` in `tmp_path/name`.

    `kill_at` dies when that step is reported; `spoil(engine)` may break the model before the first step;
    `preempted` says that a node is about to go.
    """
    loaded: list[Components] = []

    def load(*_: Any, **settings: Any) -> Components:
        loaded.append(copy.deepcopy(tiny))  # loading takes longer than training
        for part in (loaded[-1].unet, *loaded[-1].text_encoders):
            nn.Module.to(part, settings["dtype"])
        return loaded[-1]

    monkeypatch.setattr("sdxl_ray.training.trainer.load_components", load)

    def run(
        recipe: Recipe,
        name: str = "run",
        *,
        kill_at: int | None = None,
        cache: Path | None = None,
        images: Splits | None = None,
        precision: torch.dtype = torch.float32,
        spoil: Callable[[LocalEngine], object] = lambda _: None,
        preempted: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        outcome = Outcome(tmp_path / name)

        def make_engine(denoiser: Any, trainable: Any, micro_batch: int, accumulation: int) -> LocalEngine:
            outcome.engine = LocalEngine(
                denoiser,
                trainable,
                recipe.optim,
                accumulation=accumulation,
                device=torch.device("cpu"),
                precision=precision,
            )
            spoil(outcome.engine)
            return outcome.engine

        def report(row: dict[str, Any]) -> None:
            outcome.rows.append(row)
            if row["kind"] == "step" and row["step"] == kill_at:
                raise Killed

        context = RunContext(
            SingleProcess(),
            torch.device("cpu"),
            precision,
            make_engine,
            outcome.folder,
            cache or tmp_path / "cache",
            report,
            preempted,
        )
        try:
            outcome.summary = run_training(recipe, images or scan_images(recipe), context)
        except Killed:
            assert kill_at is not None
        outcome.components = loaded[-1]
        return outcome

    return run
