"""`import sdxl_ray`: the example of its docstring, and what it must not load."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sdxl_ray

FRAMEWORKS = {"torch", "ray", "deepspeed", "diffusers", "transformers", "peft", "accelerate", "pydantic", "yaml"}


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, sdxl_ray; assert dir(sdxl_ray); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not FRAMEWORKS & set(done.stdout.split())


def test_every_public_name_is_there_and_documented() -> None:
    for name in sdxl_ray.__all__:
        assert inspect.getdoc(getattr(sdxl_ray, name)), name
        assert name in dir(sdxl_ray)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        sdxl_ray.trian  # noqa: B018


def test_importing_a_package_hides_no_function() -> None:
    import sdxl_ray.comparison.compare
    import sdxl_ray.search.search

    assert callable(sdxl_ray.tune)
    assert callable(sdxl_ray.compare)


def test_the_example_runs(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the docstring has it, in a folder of one's own, with relative paths; fewer steps, without Ray."""
    monkeypatch.chdir(photos.parent)
    few = {
        "optim.steps": 2,
        "optim.warmup_steps": 0,
        "parallel.engine": "local",
        "parallel.workers": 1,
        "evaluation.scores": "never",
    }
    few |= {"evaluation.every": 0, "evaluation.num_inference_steps": 1, "data.resolution": 32, "evaluation.draws": 1}
    subject = {"data.images": photos.name, "data.subject": "sks dog", "data.class_name": "dog", "data.validation": None}
    recipe = sdxl_ray.override(sdxl_ray.load_recipe("tiny_lora"), {**subject, **few})
    artifact = sdxl_ray.train(recipe, storage=tmp_path / "runs", name="dog")
    assert artifact.folder == tmp_path / "runs" / "dog" / "artifact"
    rows: list[dict[str, object]] = []
    settings = {"seed": 1, "n": 2, "steps": 1, "width": 32, "height": 32, "on_row": rows.append}
    images = sdxl_ray.generate(artifact, "a photo of sks dog on the beach", **settings)
    assert [image.size for image in images] == [(32, 32), (32, 32)]
    assert images[0].tobytes() != images[1].tobytes()
    assert rows[-1] == {"kind": "phase", "name": "drawing", "done": 2, "total": 2}
    assert sdxl_ray.generate(artifact.folder, ["a photo of sks dog on the beach"], **settings)[0] == images[0]
    assert type(sdxl_ray.load_pipeline(artifact)).__name__ == "StableDiffusionXLPipeline"


def test_evaluate_gives_scores(tmp_path: Path, held_out: Path) -> None:
    found = sdxl_ray.evaluate(
        "base", subject=str(held_out), class_name="dog", out=tmp_path / "out", seeds=1, class_images=2, steps=1, size=32
    )
    scores = {(row["model"], row["metric"]): row["value"] for row in found.scores}
    assert scores["base", "clip_t"] is not None
    assert (tmp_path / "out" / "records").is_dir()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: sdxl_ray.load_recipe("loar"), "did you mean 'lora'"),
        (lambda: sdxl_ray.train(sdxl_ray.load_recipe("lora")), "data.images is not set"),
        (lambda: sdxl_ray.generate("base", []), "a prompt is empty"),
        (lambda: sdxl_ray.generate("runs/none", ["a dog"]), "no such folder"),
        (lambda: sdxl_ray.generate("base", ["a dog"], precision="fp8"), "choose from auto, fp32, bf16, fp16"),
        (lambda: sdxl_ray.evaluate("base", subject="photos"), "give --class-name"),
        (lambda: sdxl_ray.tune("tiny_lra"), "did you mean 'tiny_lora'"),
        (lambda: sdxl_ray.compare("dmeo"), "did you mean 'demo'"),
    ],
)
def test_wrong_input_is_a_user_error_before_anything_starts(
    call: object, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert callable(call)
    with pytest.raises(sdxl_ray.UserError, match=line):
        call()
    assert list(tmp_path.iterdir()) == []
