"""The recipes that the tests train, and what they look at."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdxl_ray.config.recipe import Recipe, load, override

if TYPE_CHECKING:
    from tests.distributed.cuts import Cut

#: Quick, and with everything in it that could differ between cuts: shuffles, dropout, flips, class images.
QUICK: dict[str, Any] = {
    "data.images": "subject:robot",
    "data.validation": "subject:robot/held_out",
    "data.subject": "sks robot",
    "data.resolution": 32,
    "data.flip": True,
    "data.caption_dropout": 0.2,
    "optim.steps": 20,
    "optim.warmup_steps": 2,
    "checkpoint.every": 5,
    "evaluation.every": 0,
    "evaluation.draws": 2,
    "evaluation.num_inference_steps": 2,
    "evaluation.prompts": ["a photo of sks robot"],
    "parallel.precision": "fp32",
}
PRIOR: dict[str, Any] = {
    "data.class_name": "robot",
    "data.prior.num_class_images": 4,
    "data.prior.num_inference_steps": 2,
}


def quick(name: str, **changes: Any) -> Recipe:
    """A shipped recipe cut down to seconds; keyword `optim__lr` is the setting `optim.lr`."""
    prior = PRIOR if "dreambooth" in name else {}
    return override(load(name), {**QUICK, **prior, **{k.replace("__", "."): v for k, v in changes.items()}})


def cut_off(**changes: Any) -> Recipe:
    """What is killed and cut off: class images, averages, accumulation.

    The UNet's adapters alone at a gentle strength, or differences of rounding would grow past what a test allows.
    """
    gentle = {"tuning__text_encoders": [], "tuning__alpha": 8}
    return quick("tiny_dreambooth_lora", optim__ema_decay=0.9, parallel__micro_batch=2, **gentle, **changes)


LORA = cut_off(parallel__workers=2)


@pytest.fixture(scope="session")
def cuts(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cut]:
    """The runs of `CUTS`, and of what else needs two workers that nobody disturbs."""
    from tests.distributed.cuts import CUTS, DIVERGING, SCORED, streamed, trained

    # First what others must be equal to bit by bit: they are a fresh process's first run too.
    recipes = {"undisturbed": LORA, **CUTS, "diverging": DIVERGING, "scored": SCORED}
    recipes["streamed"] = streamed(captioned(tmp_path_factory.mktemp("set"), 40))
    return trained(recipes, tmp_path_factory.mktemp("cuts"))


@pytest.fixture(scope="session")
def undisturbed(cuts: dict[str, Cut]) -> Path:
    """The run of `LORA` that nobody kills."""
    return cuts["undisturbed"].run.folder


def captioned(folder: Path, count: int) -> Path:
    """A Parquet file of plain images in several shapes, each with a caption of its own."""
    rows = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (48 + 8 * (i % 3), 64), ((i * 37) % 256, (i * 91) % 256, 128)).save(buffer, format="PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "text": f"a photo of a robot number {i}"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "set.parquet", row_group_size=8)
    return folder / "set.parquet"


def words(recipe: Recipe, shipped: str = "tiny_dreambooth_lora") -> list[str]:
    """The settings in which a recipe differs from a shipped one, as the command line wants them."""

    def flat(plain: Any, path: str = "") -> dict[str, Any]:
        if not isinstance(plain, dict) or not plain:
            return {path: plain}
        return {k: v for key, value in plain.items() for k, v in flat(value, f"{path}.{key}".lstrip(".")).items()}

    before, mine = (flat(one.model_dump(mode="json")) for one in (load(shipped), recipe))
    return [f"{path}={value}" for path, value in mine.items() if before.get(path) != value]


def same_run(one: Path, other: Path) -> None:
    """Losses, examples and the final weights, moments and averages are equal to the last bit."""
    import torch

    assert losses(one) == losses(other)
    assert examples(one) == examples(other)
    ours, theirs = final_state(one), final_state(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def processes(name: str) -> list[psutil.Process]:
    """Those of this test session's cluster that Ray calls so: `TrainWorker`, and `ImplicitFunc` for a trial."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended while we looked
            if process.is_running() and name in " ".join(process.cmdline()[:1]):
                found.append(process)
    return found


def losses(folder: Path) -> list[str]:
    """The loss of every step of a run, as exact as a float is."""
    from sdxl_ray.io.records import read

    return [loss.hex() for loss in read(folder / "records", "steps")["loss"].to_pylist()]


def examples(folder: Path) -> list[tuple[int, int, str]]:
    """(step, index, view) of everything that a run has seen."""
    from sdxl_ray.io.records import read

    table = read(folder / "records", "examples")
    return list(zip(*(table[name].to_pylist() for name in ("step", "index", "picture")), strict=True))


def final_state(folder: Path) -> dict[str, Any]:
    """Every tensor of a run's last checkpoint: master weights, moments and averages by name."""
    from safetensors.torch import load_file

    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return {name: tensor for file in last.glob("*.safetensors") for name, tensor in load_file(file).items()}
