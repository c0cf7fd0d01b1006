"""Merged artifacts draw what their sources draw together, live; what does not fit together is one line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from sdxl_ray.config.merging import Merging, parse_source
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Adapter, Layer, Lycoris
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.io.artifact import LORA_WEIGHTS, Artifact, write_manifest
from sdxl_ray.models.base_model_files import component_configs, locate
from sdxl_ray.models.lora_artifact import write_lora_artifact
from sdxl_ray.models.merge import merge
from sdxl_ray.models.merge_sources import open_merge, open_source
from sdxl_ray.models.pipeline import load_pipeline
from sdxl_ray.tiny import shipped
from tests.conftest import Here
from tests.random_lora import random_artifact

WEIGHTS = (0.8, -0.6)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """Two LoRAs of other ranks, alphas and layers."""
    home = tmp_path_factory.mktemp("loras")
    one = random_artifact(home / "dog", 1, rank=2, alpha=3)
    return one, random_artifact(home / "cat", 2, rank=3, alpha=1.5, parts=("unet", "text_encoder_2"))


def _latents(pipe: StableDiffusionXLPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    drawn = pipe("a photo of sks dog", num_inference_steps=3, generator=generator, output_type="latent")
    latents: torch.Tensor = drawn.images
    return latents


def _merge(two: tuple[Artifact, ...], out: Path, merging: Merging | None = None, **settings: Any) -> Artifact:
    sources = [open_source(a.folder, weight) for a, weight in zip(two, WEIGHTS, strict=False)]
    # The embedded base is stored in fp16, which rounds more than what is compared here.
    merging = (merging or Merging()).model_copy(update=settings)
    return merge(open_merge(sources, merging), out, dtype=torch.float32).artifact


@pytest.fixture(scope="module")
def live(two: tuple[Artifact, Artifact]) -> torch.Tensor:
    """What diffusers draws with both adapters."""
    pipe = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that there are several adapters
        for name, artifact in zip("ab", two, strict=True):
            pipe.load_lora_weights(str(artifact.folder), weight_name=LORA_WEIGHTS, adapter_name=name)
    pipe.set_adapters(["a", "b"], list(WEIGHTS))
    return _latents(pipe)


@pytest.mark.parametrize("into", ["lora", "model"])
def test_a_merge_draws_what_the_adapters_draw_live(
    two: tuple[Artifact, Artifact], live: torch.Tensor, tmp_path: Path, into: str
) -> None:
    merged = _merge(two, tmp_path / "merged", into=into)
    drawn = _latents(load_pipeline(Base(), Artifact.open(merged.folder), dtype=torch.float32, device="cpu"))
    base = _latents(load_pipeline(Base(), None, dtype=torch.float32, device="cpu"))
    assert float((live - base).abs().max()) > 0.05
    torch.testing.assert_close(drawn, live, rtol=1e-4, atol=1e-4)
    assert merged.manifest.kind == ("full" if into == "model" else "lora")
    assert merged.manifest.origin is not None
    assert [s["weight"] for s in merged.manifest.origin["sources"]] == list(WEIGHTS)
    assert [s["hash"] for s in merged.manifest.origin["sources"]] == [a.hash for a in two]
    assert merged.manifest.recipe["data"]["subject"] == "sks dog"
    assert merged.manifest.base.revision == shipped.revision()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


def test_a_model_alone_holds_pruned_merges_whole(two: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    """A LoRA of full rank and the model are the same; one of a low rank says what it leaves out."""
    merging = Merging(method="dare_ties", density=0.5, seed=3, rank=128)
    unet = (random_artifact(tmp_path / "c", 3, parts=("unet",)), random_artifact(tmp_path / "d", 4, parts=("unet",)))
    lora = _merge(unet, tmp_path / "lora", merging)
    model = _merge(unet, tmp_path / "model", Merging(method="dare_ties", density=0.5, seed=3), into="model")
    drawn = [_latents(load_pipeline(Base(), a, dtype=torch.float32, device="cpu")) for a in (lora, model)]
    torch.testing.assert_close(*drawn, rtol=1e-3, atol=1e-3)
    assert lora.manifest.origin is not None
    assert lora.manifest.origin["residual"] < 1e-5
    low = _merge(unet, tmp_path / "low", Merging(method="dare_ties", density=0.5, seed=3))
    assert low.manifest.origin is not None
    assert 0.1 < low.manifest.origin["residual"] < 1


@pytest.mark.parametrize("method", ["linear", "dare_linear"])
def test_the_same_merge_has_the_same_bytes(two: tuple[Artifact, Artifact], tmp_path: Path, method: Any) -> None:
    first, second = (_merge(two, tmp_path / name, Merging(method=method)) for name in ("first", "second"))
    assert first.manifest.files == second.manifest.files


def test_blocks_scale_their_layers(two: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    plain = load_file(_merge(two, tmp_path / "plain").folder / LORA_WEIGHTS)
    blocks = {"down": 0.5, "mid": 0.0, "text_encoder": 2.0}
    scaled = load_file(_merge(two, tmp_path / "scaled", blocks=blocks).folder / LORA_WEIGHTS)
    factors = {"unet.down_blocks": 0.5, "unet.up_blocks": 1.0, "text_encoder.": 2.0, "text_encoder_2.": 1.0}
    assert not any(name.startswith("unet.mid_block") for name in scaled)
    for name, tensor in scaled.items():
        factor = next(f for head, f in factors.items() if name.startswith(head)) if "lora_B" in name else 1.0
        torch.testing.assert_close(tensor, plain[name] * factor)


def _dora(home: Path, artifact: Artifact) -> Artifact:
    """The artifact with magnitudes in every layer."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "conv1"], init_lora_weights=False, use_dora=True)
        pipe.unet.add_adapter(config)
    state = get_peft_model_state_dict(pipe.unet)
    magnitudes = {n: t * 1.3 if "magnitude" in n else t for n, t in state.items()}
    pipe.save_lora_weights(home, magnitudes, unet_lora_adapter_metadata=config.to_dict())
    manifest = artifact.manifest
    return write_manifest(
        home, kind="lora", recipe=manifest.recipe, recipe_identity="", base_id="tiny",
        base_revision=shipped.revision(), step=1,
    )  # fmt: skip


def test_a_dora_goes_into_a_model(two: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    dora = _dora(tmp_path / "dora", two[0])
    pipe = load_pipeline(Base(), dora, dtype=torch.float32, device="cpu")
    pipe.set_adapters(["tuned"], [0.8])
    wanted = _latents(pipe)
    merged = _merge((dora,), tmp_path / "model", into="model")
    drawn = _latents(load_pipeline(Base(), merged, dtype=torch.float32, device="cpu"))
    torch.testing.assert_close(drawn, wanted, rtol=1e-4, atol=1e-4)
    for sources, settings in (((dora,), {}), ((dora, two[0]), {"into": "model"})):
        with pytest.raises(UserError, match=r"/dora' is a DoRA, .* merge it alone, into a model"):
            _merge(sources, tmp_path / "no", **settings)


def test_a_model_has_the_dtype_that_is_asked_for(two: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    opened = open_merge([open_source(two[0].folder)], Merging(into="model"))
    model = merge(opened, tmp_path / "model", dtype=torch.float16).artifact
    for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model"), ("text_encoder_2", "model")):
        weights = load_file(model.folder / part / f"{file}.safetensors")
        assert {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.float16}
    assert "down_blocks.0.resnets.0.conv1.weight" in load_file(
        model.folder / "unet" / "diffusion_pytorch_model.safetensors"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [("a/b=0.8", ("a/b", 0.8)), ("a=b/c=-2", ("a=b/c", -2.0)), ("a/b", ("a/b", 1.0)), ("here=1", ("here=1", 1.0))],
)
def test_a_source_is_a_path_and_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: tuple[str, float]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here=1").mkdir()
    assert parse_source(text) == found


def test_input_that_does_not_fit_together_is_one_line(
    two: tuple[Artifact, Artifact], tmp_path: Path, here: Here
) -> None:
    one, other = (str(a.folder) for a in two)
    v = random_artifact(tmp_path / "v", 5, **{"objective.prediction": "v_prediction"})
    elsewhere = _rewritten(two[1], tmp_path / "elsewhere", base_revision="f" * 64)
    nan = tmp_path / "nan"
    _rewritten(two[0], nan)
    tensors = {name: t * float("nan") for name, t in load_file(nan / LORA_WEIGHTS).items()}
    save_file(tensors, nan / LORA_WEIGHTS)
    _rewritten(Artifact(nan, two[0].manifest), nan)
    cases: list[tuple[tuple[str, ...], str]] = [
        ((f"{one}=x",), "the weight 'x' is no number"),
        ((f"{one}=nan", other), "the weight nan is not finite"),
        ((f"{one}=0", other), "the weight 0 takes nothing of it"),
        ((one, f"{one}=0.5"), "are the same adapter: give it once, with the weight 1.5"),
        (("copy", other, one), "are the same adapter: give it once, with the weight 2"),
        (("nowhere", other), "no such folder"),
        ((one, str(v.folder)), "/v' with prediction_type=v_prediction"),
        ((one, str(elsewhere.folder)), "/dog' was made on base 'tiny'"),
        ((one, str(nan)), "NaN or infinity"),
        ((one, other, "--method", "tise"), "method = 'tise': input should be 'linear'"),
        ((one, other, "--rank", "4096"), "rank 4096: the layers of these adapters have rank"),
        ((one, other, "--rank", "4", "--into", "model"), "rank 4 is of a LoRA"),
        ((one, "--into", "modle"), "into = 'modle': input should be 'lora' or 'model'"),
        ((one, "--dtype", "fp8"), "choose from bf16, fp16, fp32"),
        ((one, "--blocks", "mdi=1"), "did you mean 'mid'?"),
        ((one, "--blocks", "down=0,mid=0,up=0,text_encoder=0,text_encoder_2=0"), "blocks leave no layer"),
        ((one, "--out", "full"), "'full' is there already"),
        ((one, "--out", f"{one}/inside"), "is inside"),
        ((one, "--base", "nowhere"), "base 'nowhere'"),
        ((f"{one}=1e39", other), "is too large for float32: give smaller weights"),
        ((f"{one}=1e6", "--dtype", "fp16"), "is too large for float16"),
        ((f"{one}=1e6", "--into", "model", "--dtype", "fp16"), "is too large for float16"),
    ]  # fmt: skip
    _rewritten(two[0], tmp_path / "copy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    for words, line in cases:
        code, out, err = here("merge", *words)
        assert (code, out) == (2, ""), (words, err)
        message = err.strip().splitlines()[-1]
        assert line in message, (words, message)
    assert here("merge")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_kinds_that_are_no_pairs_are_refused(two: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    files = locate(Base())
    names = LayerNames.of(component_configs(files))
    layer = Layer("unet", "mid_block.attentions.0.proj_in")
    rows, columns = names.shapes[layer][:2]
    roles = {f"hada_w{n}_{half}": torch.ones((rows, 2) if half == "a" else (2, columns)) for n in "12" for half in "ab"}
    adapter = Adapter({layer: Lycoris("loha", {**roles, "alpha": torch.tensor(2.0)})})
    loha = write_lora_artifact(tmp_path / "loha", adapter, names, files, Recipe(), origin={"command": "import"})
    assert not (loha.folder / LORA_WEIGHTS).exists()
    for into in ("lora", "model"):
        with pytest.raises(UserError, match=r"/loha' holds loha in 1 layers, as mid_block\.attentions\.0\.proj_in: "):
            _merge((two[0], loha), tmp_path / "no", into=into)


def _rewritten(artifact: Artifact, folder: Path, **changes: Any) -> Artifact:
    folder.mkdir(exist_ok=True)
    if artifact.folder != folder:
        (folder / LORA_WEIGHTS).write_bytes((artifact.folder / LORA_WEIGHTS).read_bytes())
    revision = changes.get("base_revision", shipped.revision())
    return write_manifest(folder, kind="lora", recipe=artifact.manifest.recipe, recipe_identity="",
                          base_id="tiny", base_revision=revision, step=1)  # fmt: skip


def test_the_command_merges_and_the_others_take_what_it_made(
    two: tuple[Artifact, Artifact], tmp_path: Path, here: Here
) -> None:
    one, other = (str(a.folder) for a in two)
    code, out, err = here("merge", f"{one}=0.8", other, "--method", "svd", "--rank", "2", "--out", "both", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["method"], found["rank"], found["ranks"]) == ("svd", 2, [2, 2])
    assert 0 < found["residual"] < 1
    assert "sks dog" in (tmp_path / "both" / "README.md").read_text()
    code, out, err = here("generate", "both", "a photo of sks dog", "--steps", "1", "--out", "drawn")
    assert code == 0, err
    code, out, err = here("merge", f"{one}=0.8", "--out", "again")
    assert code == 0, err
    assert "residual  none: exact" in out
    code, out, err = here("merge", one, other, "--method", "dare_linear", "--out", "dropped")
    assert code == 0, err
    assert "of the change (Frobenius norm) does not fit the rank: raise --rank, or take --into model" in out
