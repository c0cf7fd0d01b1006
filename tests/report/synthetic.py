"""A comparison's folder as `compare` leaves it, with numbers from seeded formulas and the shipped subjects' images.

Nothing is trained: the records are written through Recorder, so whatever reads them reads what real ones look like.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance, ImageFilter

from sdxl_ray.config.experiment import load_experiment
from sdxl_ray.config.recipe import load, override
from sdxl_ray.io.artifact import write_manifest
from sdxl_ray.io.records import ALL_SUBJECTS, Recorder, read
from sdxl_ray.report.build import compose
from sdxl_ray.report.document import Panels
from sdxl_ray.report.facts import ComparisonFacts, gather
from sdxl_ray.report.markdown import markdown
from sdxl_ray.report.source import ArmCard, ComparisonCard, Environment, GenerationCard, open_comparison
from sdxl_ray.tiny import shipped

SUBJECTS = Path(shipped.__file__).parent / "subjects"
PROMPTS = ["a photo of a robot", "a photo of a robot on the beach", "a photo of a robot in the snow"]
CLASS_PROMPT = "a photo of the class robot"
SEEDS = [0, 1]
#: Where each model ends: metric -> value; the base first.
ENDS: dict[str, dict[str, float]] = {
    "base": {"dino_i": 0.31, "clip_i": 0.62, "clip_t": 0.281, "pres": 0.33, "prior_loss": 0.141, "div": 0.42},
    "lora": {"dino_i": 0.74, "clip_i": 0.81, "clip_t": 0.262, "pres": 0.48, "prior_loss": 0.150, "div": 0.37},
    "dreambooth": {"dino_i": 0.79, "clip_i": 0.83, "clip_t": 0.251, "pres": 0.41, "prior_loss": 0.146, "div": 0.33},
    "dreambooth_lora": {"dino_i": 0.69, "clip_i": 0.79, "clip_t": 0.27, "pres": 0.36, "prior_loss": 0.143, "div": 0.4},
}
TRAINED = {"lora": 93_184, "dreambooth": 11_201_924, "dreambooth_lora": 186_368}
ENCODERS = {"clip_i": "tiny-clip", "clip_t": "tiny-clip"}
WIDTH = 0.035  # half of an interval


def make(storage: Path, *, arms: tuple[str, ...] = ("lora", "dreambooth", "dreambooth_lora"), steps: int = 150) -> Path:
    """Write `<storage>/demo-comparison` and one run folder an arm; the comparison's folder."""
    home = storage / "demo-comparison"
    recipes = {run.arm: run.recipe.model_dump(mode="json") for run in load_experiment("demo").runs({})}
    hashes = {arm: _run(storage / f"demo-{arm}", arm, recipes[arm], steps) for arm in arms}
    with Recorder(home / "records") as recorder:
        for model in ("base", *arms):
            _scores(recorder, model, steps, hashes.get(model, ""))
            _images(recorder, home, model, steps)
        _references(recorder)
        _photos(recorder, home)
        _requests(recorder, {"base": "", **hashes})
    card = ComparisonCard(
        name="demo",
        experiment="LoRA, DreamBooth and DreamBooth + LoRA on the embedded base, from five images of a robot",
        arms={arm: ArmCard(run=f"demo-{arm}", recipe=recipes[arm], artifact=hashes[arm]) for arm in arms},
        base={"id": "tiny", "revision": "4f1c" * 16},
        environment=Environment(
            versions={"sdxl-ray": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1", "ray": "2.60.0"},
            hardware={"cpu": "2 cores", "memory": "24 GiB", "gpu": "none"},
            date="2026-11-23T16:00:00+00:00",
        ),
        settings=GenerationCard(seeds=SEEDS, steps=20, guidance=4.0, prompts=PROMPTS),
    )
    card.write(home)
    return home


def _run(folder: Path, arm: str, recipe: dict[str, Any], steps: int) -> str:
    rng = random.Random(arm)
    folder.mkdir(parents=True)
    with Recorder(folder / "records") as recorder:
        for step in range(1, steps + 1):
            loss = 0.09 + 0.09 * math.exp(-step / 40) + rng.gauss(0, 0.012)
            seconds = {"lora": 0.13, "dreambooth": 0.24, "dreambooth_lora": 0.19}[arm] * (1 + rng.random() / 10)
            recorder.write(
                "steps",
                {
                    "step": step, "loss": loss, "lr": 1e-3, "grad_norm": 1.0, "samples": 4, "workers": 2,
                    "samples_per_s": 4 / seconds, "seconds": seconds,
                    "peak_bytes": int({"lora": 1.1, "dreambooth": 1.4, "dreambooth_lora": 1.2}[arm] * 2**30),
                },
            )  # fmt: skip
        for step in range(0, steps + 1, 25):
            recorder.write("validation", {"step": step, "loss": 0.11 + 0.05 * math.exp(-step / 50), "n": 24})
            for metric in ENDS[arm]:
                _score(recorder, step, arm if step else "base", metric, _on_the_way(arm, metric, step), "validation")
    summary = {"trainable": TRAINED[arm], "steps": steps, "prepare_s": 9.5, "train_s": 41.0, "resumed_at": 0}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "pictures").mkdir()
    pq.write_table(pa.table({"key": [str(n) for n in range(5)]}), folder / "pictures" / "train.parquet")
    (folder / "artifact").mkdir()
    (folder / "artifact" / "weights.safetensors").write_bytes(b"\0" * 2 * (TRAINED[arm] // 10))
    kind = "full" if recipe["tuning"]["kind"] == "full" else "lora"
    written = write_manifest(
        folder / "artifact", kind=kind, recipe=recipe, recipe_identity="0" * 64, base_id="tiny",
        base_revision="4f1c" * 16, step=steps, versions={}, created="2026-11-23T16:00:00+00:00",
    )  # fmt: skip
    return written.hash


def _on_the_way(arm: str, metric: str, step: int) -> float:
    start, end = ENDS["base"][metric], ENDS[arm][metric]
    return start + (end - start) * (1 - math.exp(-step / 45))


def _score(
    recorder: Recorder, step: int, model: str, metric: str, value: float, split: str, width: float = WIDTH, **more: Any
) -> None:
    recorder.write(
        "scores",
        {
            "step": step, "model": model, "subject": "robot", "metric": metric, "value": value, "low": value - width,
            "high": value + width, "n": 24, "encoder": ENCODERS.get(metric, "tiny-identity"),
            "preprocessing": "64 px, bicubic, centre crop", "split": split, "seconds": 3.0, **more,
        },
    )  # fmt: skip


def _scores(recorder: Recorder, model: str, steps: int, artifact: str) -> None:
    step = 0 if model == "base" else steps
    for metric, value in ENDS[model].items():
        small = 0.004 if metric == "prior_loss" else WIDTH / 3 if metric == "clip_t" else WIDTH
        _score(recorder, step, model, metric, value, "final", small, artifact=artifact)
    if model != "base":
        kid = {"lora": 0.021, "dreambooth": 0.034, "dreambooth_lora": 0.008}[model]
        _score(recorder, step, model, "class_kid", kid, "final", 0.006, artifact=artifact)
        gain = ENDS[model]["dino_i"] - ENDS["base"]["dino_i"]
        _score(recorder, step, model, "dino_i_gain", gain, "final", 0.02, artifact=artifact)


def _references(recorder: Recorder) -> None:
    for model, values in {"real": {"dino_i": 0.86, "clip_i": 0.9}, "other": {"dino_i": 0.44, "clip_i": 0.7}}.items():
        for metric, value in values.items():
            _score(recorder, 0, model, metric, value, "final", 0.03)


def _images(recorder: Recorder, home: Path, model: str, steps: int) -> None:
    """The subject's photos, blurred less the better the model is; another subject for the base."""
    (home / "pictures").mkdir(exist_ok=True)
    step = 0 if model == "base" else steps
    for place, prompt in enumerate([*PROMPTS, CLASS_PROMPT]):
        for seed in SEEDS:
            name = "cat" if model == "base" else "robot"
            with Image.open(SUBJECTS / name / f"{(place + seed) % 5}.png") as photo:
                image = photo.convert("RGB").filter(ImageFilter.GaussianBlur(1.5 * (1 - ENDS[model]["dino_i"])))
            image = ImageEnhance.Color(image).enhance(0.8 + 0.1 * seed)
            path = f"pictures/{model}-{place}-{seed}.png"
            image.save(home / path)
            purpose = "class" if prompt == CLASS_PROMPT else "subject"
            recorder.write("pictures", _image(step, model, prompt, seed, path, purpose) | {"seconds": 0.12})


def _photos(recorder: Recorder, home: Path) -> None:
    for number, path in enumerate(sorted((SUBJECTS / "robot" / "held_out").glob("*.png"))):
        name = f"pictures/real-{number}.png"
        (home / name).write_bytes(path.read_bytes())
        recorder.write("pictures", _image(0, "real", "", number, name, "real"))


def _requests(recorder: Recorder, artifacts: dict[str, str]) -> None:
    """A load test at two rates: the base's latencies, and those of the arms some percent above them."""
    for rate in (1.0, 2.0):
        for arm, slower in zip(artifacts, (1.0, 1.05, 1.01, 1.2), strict=False):
            rng = random.Random(f"{rate}")  # every arm meets the same arrivals
            for index in range(120):
                due, latency = index / rate, rng.lognormvariate(0.0, 0.3) * 400 * rate * slower
                full = index % 60 == 59 and rate > 1
                recorder.write(
                    "requests",
                    {
                        "arm": arm, "phase": "run", "scenario": "server", "rate": rate, "round": index // 60,
                        "index": index % 60, "sample": index % 7, "model": arm, "artifact": artifacts[arm],
                        "prompt": PROMPTS[index % 3], "seed": index % 7, "steps": 20, "intended_s": due,
                        "sent_s": due + 0.001, "done_s": due + latency / 1000, "latency_ms": latency,
                        "queue_ms": latency / 4, "text_ms": 3.0, "denoise_ms": latency / 2, "decode_ms": 12.0,
                        "server_ms": latency - 5, "batch": 2.5, "status": 429 if full else 200, "bytes": 9000,
                        "deployment": "shared", "generator_cpu": 0.03, "started": "2026-11-23T16:00:00+00:00",
                    },
                )  # fmt: skip


def _image(step: int, model: str, prompt: str, seed: int, path: str, purpose: str) -> dict[str, Any]:
    return {
        "step": step, "model": model, "subject": "robot", "prompt": prompt, "seed": seed, "path": path,
        "purpose": purpose, "split": "final",
    }  # fmt: skip


def several_photo_counts(home: Path) -> None:
    """Turn the arms into LoRA arms of 1, 3 and 5 photos, in place."""
    card = json.loads((home / "comparison.json").read_text())
    lora = override(load("tiny_lora"), {"data.images": "subject:robot"}).model_dump(mode="json")
    for (arm, entry), count in zip(card["arms"].items(), (5, 1, 3), strict=True):
        entry["recipe"] = lora
        run = home.parent / f"demo-{arm}"
        (run / "run.json").write_text(json.dumps({"recipe": lora}))
        pq.write_table(pa.table({"key": [str(n) for n in range(count)]}), run / "pictures" / "train.parquet")
    (home / "comparison.json").write_text(json.dumps(card))


def several_step_counts(home: Path) -> None:
    """Scores and images drawn with other numbers of denoising steps, in place."""
    with Recorder(home / "records") as recorder:
        for model, ends in ENDS.items():
            step = 0 if model == "base" else 150
            for steps in (4, 8, 12, 20, 30):
                for metric in ("dino_i", "clip_t"):
                    value = ends[metric] * (1 - math.exp(-steps / 6))
                    _score(recorder, step, model, metric, value, f"final@{steps}")
                row = _image(step, model, PROMPTS[0], 0, f"pictures/{model}-0-0.png", "subject")
                recorder.write("pictures", row | {"split": f"final@{steps}", "seconds": 0.006 * steps})


def several_subjects(home: Path) -> None:
    """Every score once more, of a second subject, and joined over both by the evaluator, in place."""
    rows = read(home / "records", "scores").to_pylist()
    with Recorder(home / "records") as recorder:
        for row in rows:
            for subject, more in (("frog", -0.02), (ALL_SUBJECTS, -0.01)):
                bounds = {key: row[key] + more for key in ("value", "low", "high")}
                recorder.write("scores", {**row, **bounds, "subject": subject})


def pair(home: Path, model: str, against: str, metric: str, value: float, width: float, subject: str = "robot") -> None:
    """One paired difference of two arms."""
    with Recorder(home / "records") as recorder:
        recorder.write("differences", {"step": 0, "model": model, "against": against, "subject": subject,
                                       "metric": metric, "value": value, "low": value - width, "high": value + width,
                                       "n": 24, "split": "final"})  # fmt: skip


def change(home: Path, **values: Any) -> None:
    """Lay values over the card."""
    card = json.loads((home / "comparison.json").read_text())
    (home / "comparison.json").write_text(json.dumps(card | values))


def rescore(home: Path, model: str, metric: str, value: float, width: float | None = WIDTH, **more: Any) -> None:
    """One more row, which counts from now on."""
    step = 0 if model in ("base", "real", "other") else 150
    low, high = (None, None) if width is None else (value - width, value + width)
    known = {"subject": "robot", "n": 24, "encoder": "e", "preprocessing": "p", "split": "final", "step": step}
    with Recorder(home / "records") as recorder:
        recorder.write("scores", {**known, "model": model, "metric": metric, "value": value, "low": low, "high": high,
                                  "artifact": None, **more})  # fmt: skip


def facts_of(home: Path) -> ComparisonFacts:
    """What a report is made of."""
    return gather(open_comparison(home))


def text_of(home: Path) -> str:
    """The report as Markdown; no plot is drawn for it."""
    return markdown(compose(home)[0])


def plain_of(home: Path) -> dict[str, Any]:
    """What `report.json` says."""
    return compose(home)[1]


def alts_of(home: Path) -> list[str]:
    """What the report says of each of its plots."""
    blocks = [block for section in compose(home)[0].sections for block in section.blocks]
    return [panel.alt for block in blocks if isinstance(block, Panels) for panel in block.panels]
