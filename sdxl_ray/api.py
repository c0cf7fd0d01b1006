"""The public functions of `sdxl_ray`: what the command line does, for a script or a notebook.

Paths are relative to the working directory. Every function takes `on_row`, which gets progress rows (dicts with a
"kind"); `sdxl_ray.display.progress.Progress(sys.stderr).row` shows them as the command line does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_ray.config.recipe import Recipe, load, override, read_base
from sdxl_ray.config.schema import Base, MaxTokenLength
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.rows import OnRow

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from PIL import Image

    from sdxl_ray.comparison.compare import ComparisonResult
    from sdxl_ray.evaluation.runner import EvaluationResult
    from sdxl_ray.models.extraction import ExtractionResult
    from sdxl_ray.search.search import SearchResult

__all__ = ["compare", "evaluate", "extract", "generate", "load_pipeline", "load_recipe", "override", "train", "tune"]


def _ignore(row: dict[str, Any]) -> None:
    """No progress is shown."""


def load_recipe(name: str | Path) -> Recipe:
    """A shipped recipe by name ("lora", "dreambooth", "tiny_lora", ...) or a .yaml file.

    `override(recipe, {"optim.steps": 100})` changes settings. Raises UserError for an unknown name or setting.
    """
    return load(str(name))


def train(
    recipe: Recipe,
    *,
    storage: str | Path = "runs",
    name: str | None = None,
    address: str | None = None,
    extend: bool = False,
    on_row: OnRow = _ignore,
) -> Artifact:
    """Train a recipe, or resume the run of this name; the artifact.

    storage: a folder, or the URL of object storage. name: of the run; default, from subject and recipe. address: of a
    Ray cluster ("auto" or host:port); default, a local one, or none with `parallel.engine` "local". extend: train a run
    that has ended further, up to `optim.steps`.
    Raises UserError before anything starts when the input is wrong, RunError when the run fails.
    """
    from sdxl_ray.distributed.train import launch

    recipe.require_complete()
    result = launch(recipe, storage=storage, name=name, address=address, extend=extend, on_row=on_row)
    return Artifact.open(result.artifact)


def load_pipeline(
    source: str | Path | Artifact = "base", *, base: str | Base | None = None, precision: str = "auto"
) -> StableDiffusionXLPipeline:
    """The diffusers pipeline of an artifact, its folder, or of the base (the word "base"), ready to draw.

    base: "tiny", a diffusers folder, a .safetensors file or a hub id; default, the one that the artifact was made on.
    precision: "auto" (bf16 on a GPU, fp32 on the CPU), "fp32", "bf16" or "fp16".
    Raises UserError for an artifact that was changed, or made on another base.
    """
    from sdxl_ray.models.generation import GenerationSource, device_and_dtype
    from sdxl_ray.models.pipeline import load_pipeline as load_on

    model = GenerationSource.of(source, _base(base))
    device, dtype = device_and_dtype(precision)
    return load_on(model.base, model.artifact, dtype=dtype, device=device)


def generate(
    source: str | Path | Artifact,
    prompts: str | Sequence[str],
    *,
    seed: int = 0,
    n: int = 1,
    steps: int = 30,
    guidance: float = 7.5,
    negative: str | None = None,
    width: int | None = None,
    height: int | None = None,
    max_token_length: MaxTokenLength | None = None,
    batch: int = 4,
    precision: str = "auto",
    base: str | Base | None = None,
    on_row: OnRow = _ignore,
) -> list[Image.Image]:
    """Images of an artifact, its folder, or the base (the word "base"): `n` for each prompt, seeds counting up.

    width, height: pixels, multiples of 8; default, the base's own size. An image depends on its prompt, its seed and
    the settings, not on what else is drawn. Raises UserError for wrong input, RunError for numbers that are not finite.
    """
    from sdxl_ray.models.generation import GenerationRequest, GenerationSource, generate_images

    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    request = GenerationRequest(
        texts, seed, n, steps, guidance, negative, width, height, max_token_length, batch, precision
    )
    request.check()
    images, _ = generate_images(GenerationSource.of(source, _base(base)), request, on_row)
    return images


def evaluate(
    *sources: str | Path | Artifact,
    out: str | Path = "evaluation",
    workers: int | None = None,
    address: str | None = None,
    on_row: OnRow = _ignore,
    **settings: Any,
) -> EvaluationResult:
    """Scores of artifacts and of the base (the word "base") against held-out photos, with intervals.

    settings: those of `sdxl_ray.evaluation.request.EvaluationRequest`: subject (folder of photos), class_name, seeds,
    steps ... Images and records go to `out`; images that lie there are not drawn again. workers, address: draw on Ray.
    Raises UserError for input that cannot be evaluated, RunError when drawing fails.
    """
    from sdxl_ray.distributed.evaluate import evaluate_request
    from sdxl_ray.evaluation.request import EvaluationRequest, open_request
    from sdxl_ray.paths import local_folder

    if "base" in settings:
        settings["base"] = _base(settings["base"])
    names = [str(source.folder) if isinstance(source, Artifact) else str(source) for source in sources]
    opened = open_request(EvaluationRequest(names, **settings))
    folder = local_folder(str(out))
    folder.mkdir(parents=True, exist_ok=True)
    _, found = evaluate_request(opened, folder, workers=workers, address=address, on_row=on_row)
    return found


def extract(
    model: str | Path | Artifact,
    ranks: Sequence[int | str] = (4, 8, 16, 32, 64),
    *,
    energy: Sequence[float] = (),
    out: str | Path = "extracted",
    base: str | Base | None = None,
    dtype: str | None = None,
    on_row: OnRow = _ignore,
) -> ExtractionResult:
    """LoRAs of a full model's difference from its base, an artifact a rank in `out`.

    model: the artifact of a full run, or a diffusers folder with its `base`. ranks: numbers, or "full". energy: shares
    of each layer's squared singular values that one more LoRA each keeps. dtype: "fp16", "bf16" or "fp32"; default,
    the model's. `result.rows` has sizes and residuals. Raises UserError for a model that cannot be taken apart.
    """
    from sdxl_ray.formats.extraction import rank_rules
    from sdxl_ray.models.device import DTYPES
    from sdxl_ray.models.extraction import extract as take_apart
    from sdxl_ray.models.full_model import FullModel
    from sdxl_ray.paths import local_folder

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    rules = rank_rules(",".join(map(str, ranks)), ",".join(map(str, energy)))
    kept = DTYPES[dtype] if dtype is not None else None
    return take_apart(FullModel.open(model, _base(base)), rules, local_folder(out), dtype=kept, on_row=on_row)


def tune(
    space: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    storage: str | Path = "runs",
    name: str | None = None,
    address: str | None = None,
    resume: bool = False,
    on_row: OnRow = _ignore,
) -> SearchResult:
    """Search a recipe's settings by held-out quality.

    space: a shipped one ("lora", "tiny_lora", ...) or a .yaml file. changes: settings of the space ("budget.trials")
    and of its recipe ("data.images"). `result.best` is the recipe file of the winner. Raises UserError for a space that
    cannot be searched, RunError when no trial succeeds.
    """
    from sdxl_ray.config.search_space import open_space
    from sdxl_ray.paths import required_name
    from sdxl_ray.search.search import search

    called = required_name(name or Path(space).stem)
    loaded, recipe = open_space(str(space), changes or {})
    return search(loaded, recipe, storage=storage, name=called, address=address, resume=resume, on_row=on_row)


def compare(
    experiment: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    storage: str | Path = "runs",
    address: str | None = None,
    load: bool = True,
    on_row: OnRow = _ignore,
) -> ComparisonResult:
    """Train the arms of an experiment under equal conditions, evaluate, load-test and report them.

    experiment: a shipped one ("demo", "study", ...) or a .yaml file. changes: settings of every arm's recipe. load: run
    the experiment's load test, where it has one.
    Raises UserError for an experiment that cannot be run, RunError when an arm fails.
    """
    from sdxl_ray.comparison.experiment import open_experiment, run_experiment

    opened = open_experiment(experiment, changes or {}, load=load)
    result, _ = run_experiment(opened, storage=storage, address=address, on_row=on_row)
    return result


def _base(base: str | Base | None) -> Base | None:
    if base is None or isinstance(base, Base):
        return base
    if not base:
        raise UserError('base is empty: write "tiny", a folder, a .safetensors file or a hub id')
    return read_base(base)
