"""Finding and loading a base, and refusing everything else in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.io import safetensors_files
from sdxl_ray.models import base_model, hub
from tests.models.single_file import write_single_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path, embedded: Path) -> Path:
    """A copy of the embedded base that a test may break."""
    return Path(shutil.copytree(embedded, tmp_path / "base"))


def _load(base: Base, dtype: torch.dtype = torch.float32) -> base_model.Components:
    return base_model.load_components(base_model.locate(base), base, dtype=dtype, device="cpu")


def _same(one: base_model.Components, other: base_model.Components) -> bool:
    pairs = zip((one.unet, one.vae, *one.text_encoders), (other.unet, other.vae, *other.text_encoders), strict=True)
    return all(
        a.state_dict().keys() == b.state_dict().keys()
        and all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
        for a, b in pairs
    )


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _refused(base: Base) -> str:
    with pytest.raises(UserError) as caught:
        base_model.locate(base)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_embedded_base_is_located_and_its_configs_read_without_any_framework() -> None:
    code = (
        "import sys; from sdxl_ray.config.recipe import Base; from sdxl_ray.models import base_model_files;"
        "configs = base_model_files.component_configs(base_model_files.locate(Base()));"
        "assert sorted(configs) == ['scheduler', 'text_encoder', 'text_encoder_2', 'unet', 'vae'];"
        "heavy = {'torch', 'diffusers', 'transformers', 'ray', 'huggingface_hub'} & sys.modules.keys();"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_folder_is_the_embedded_base_weight_for_weight_and_frozen(folder: Path) -> None:
    tiny, copied = _load(Base()), _load(Base(id=str(folder)))
    assert _same(tiny, copied)
    assert (tiny.files.id, copied.files.id) == ("tiny", str(folder))
    for model in (copied.unet, copied.vae, *copied.text_encoders):
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())
    pipe = copied.pipeline()
    assert pipe.unet is copied.unet
    assert pipe.config.force_zeros_for_empty_prompt is True
    assert pipe.tokenizer_2.pad_token == "!"


@pytest.mark.parametrize(("setting", "expected"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_the_vae_keeps_its_own_precision(setting: str, expected: torch.dtype) -> None:
    parts = _load(Base(vae_precision=setting), torch.bfloat16)
    assert parts.vae.dtype == expected
    assert parts.unet.dtype == torch.bfloat16
    assert [encoder.dtype for encoder in parts.text_encoders] == [torch.bfloat16] * 2


def test_half_precision_variants_and_shards_are_found(folder: Path) -> None:
    for file in [*folder.rglob(UNET), *folder.rglob("model.safetensors")]:
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert _same(_load(Base()), _load(Base(id=str(folder))))
    parts = _load(Base(id=str(folder)))
    shutil.rmtree(folder / "unet")
    parts.unet.save_pretrained(folder / "unet", max_shard_size="5MB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert _same(_load(Base()), _load(Base(id=str(folder))))
    next((folder / "unet").glob("*-of-*.safetensors")).unlink()
    assert "unet is incomplete" in _refused(Base(id=str(folder)))


def test_another_vae_replaces_the_bases_own(folder: Path) -> None:
    weights = load_file(folder / "vae" / UNET)
    save_file({name: value * 2 for name, value in weights.items()}, folder / "vae" / UNET)
    base = Base(vae=str(folder / "vae"))
    parts, plain = _load(base), _load(Base())
    assert torch.equal(parts.vae.get_parameter("quant_conv.weight"), weights["quant_conv.weight"] * 2)
    assert torch.equal(parts.unet.conv_in.weight, plain.unet.conv_in.weight)
    alone = base_model.load_vae(base_model.locate(base), base, device="cpu")
    assert torch.equal(alone.get_parameter("quant_conv.weight"), weights["quant_conv.weight"] * 2)
    assert not alone.training
    assert not any(weight.requires_grad for weight in alone.parameters())
    assert parts.files.revision == plain.files.revision
    assert parts.files.content != plain.files.content
    _edit(folder / "vae" / "config.json", scaling_factor=0.5)
    assert base_model.component_configs(base_model.locate(base))["vae"]["scaling_factor"] == 0.5
    assert "is a whole pipeline: give its VAE" in _refused(Base(vae=str(folder)))
    assert "is 'UNet2DConditionModel', not AutoencoderKL" in _refused(Base(vae=str(folder / "unet")))


def test_the_revision_follows_the_content_and_not_the_path_or_other_files(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (moved / "README.md").write_text("new")
    first = base_model.locate(Base(id=str(folder))).revision
    assert base_model.locate(Base(id=str(moved))).revision == first
    weights = load_file(moved / "unet" / UNET)
    weights["conv_in.bias"][0] += 1
    save_file(weights, moved / "unet" / UNET)
    assert base_model.locate(Base(id=str(moved))).revision != first


def test_a_large_file_is_hashed_once_and_again_when_it_changed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "large.safetensors"
    file.write_bytes(b"a" * 2**20)
    first = safetensors_files.content_revision(file)
    before = file.stat()
    note = next((tmp_path / "cache").rglob("*.json"))
    note.write_text(note.read_text().replace(first, "0" * 64))
    assert safetensors_files.content_revision(file) == "0" * 64  # taken from the note: the file was not read again
    note.write_text("damaged")
    assert safetensors_files.content_revision(file) == first
    file.write_bytes(b"b" * 2**20)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert safetensors_files.content_revision(file) != first


def test_a_single_file_in_sgm_names_is_the_same_model(tmp_path: Path, embedded: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    write_single_file(embedded, file)
    base = Base(id=str(file), config=str(embedded))
    files = base_model.locate(base)
    assert files.kind == "file"
    assert base_model.component_configs(files)["unet"]["block_out_channels"] == [32, 64, 128]
    parts = _load(base)
    assert _same(parts, _load(Base()))
    assert parts.scheduler.config.prediction_type == "epsilon"
    assert "set base.config=FOLDER" in _refused(Base(id=str(file)))


def test_a_single_file_marked_as_v_prediction_gets_that_scheduler(tmp_path: Path, embedded: Path) -> None:
    file = tmp_path / "v.safetensors"
    write_single_file(embedded, file, {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)})
    base = Base(id=str(file), config=str(embedded))
    assert base_model.component_configs(base_model.locate(base))["scheduler"]["prediction_type"] == "v_prediction"
    config = _load(base).scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr is True
    assert config.timestep_spacing == "trailing"


def test_a_single_file_that_lacks_weights_is_refused(tmp_path: Path, embedded: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    write_single_file(embedded, file)
    weights = load_file(file)
    del weights["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(weights, file)
    with pytest.raises(UserError, match=r"lacks weights that .* names: the file is incomplete"):
        _load(Base(id=str(file), config=str(embedded)))


def test_a_folder_that_lacks_weights_is_named(folder: Path) -> None:
    for part, file, name in (
        ("unet", UNET, "conv_in.weight"),
        ("text_encoder_2", "model.safetensors", "text_projection.weight"),
    ):
        whole = load_file(folder / part / file)
        save_file({key: value for key, value in whole.items() if key != name}, folder / part / file)
        with pytest.raises(UserError, match=f"{part} in .* lacks 1 weights, as {name}"):
            _load(Base(id=str(folder)))
        save_file(whole, folder / part / file, {"format": "pt"})


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _pickle_unet(folder: Path) -> None:
    (folder / "unet" / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def _truncate(folder: Path) -> None:
    with (folder / "unet" / UNET).open("r+b") as stream:
        stream.truncate(1_000_000)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_remove("model_index.json"), "holds no model_index.json"),
        (_remove("scheduler/scheduler_config.json"), "incomplete: scheduler/scheduler_config.json is missing"),
        (
            lambda folder: [_remove(f"tokenizer_2/{name}")(folder) for name in ("tokenizer.json", "vocab.json")],
            "incomplete: tokenizer_2/tokenizer.json is missing",
        ),
        (_remove("text_encoder/model.safetensors"), "text_encoder is incomplete: no safetensors weights"),
        (_pickle_unet, "unet has only pickled weights, which are never loaded"),
        (_truncate, f"unet: {UNET} has 1000000 bytes of"),
        (
            lambda f: (f / "vae" / UNET).write_bytes(b""),
            "vae: diffusion_pytorch_model.safetensors is not a safetensors",
        ),
        (lambda f: (f / "vae" / UNET).write_bytes(b"\x02\0\0\0\0\0\0\0[]"), "has a broken header"),
        (lambda f: (f / "unet" / "config.json").write_text("{" * 100_000), "is not JSON"),
        (lambda f: (f / "unet" / "config.json").write_text("[" * 100_000), "is not JSON"),
        (lambda f: (f / "unet" / "config.json").write_text("[]"), "holds a list, not a JSON object"),
        (lambda f: (f / "unet" / "config.json").write_text('{"a": "' + "x" * 11_000_000 + '"}'), "at most 10485760"),
        (
            lambda f: _edit(f / "unet" / "config.json", addition_embed_type=None),
            "not SDXL: its UNet has addition_embed",
        ),
        (lambda f: _edit(f / "unet" / "config.json", in_channels=9), "inpainting or editing SDXL (9 input channels)"),
        (
            lambda f: _edit(f / "model_index.json", _class_name="StableDiffusionPipeline"),
            "not SDXL but Stable Diffusion 1.x or 2.x",
        ),
        (
            lambda f: _edit(f / "model_index.json", _class_name=["pipeline", "Custom"]),
            "is not SDXL but made for ['pipeline', 'Custom']",
        ),
        (lambda f: _edit(f / "model_index.json", text_encoder=[None, None]), "model_index.json has no text_encoder"),
        (
            lambda f: _edit(f / "model_index.json", unet=["my_unet", "MyUNet"]),
            "unet is my_unet.MyUNet, which is not SDXL's; custom code is never loaded",
        ),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(folder: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(folder)
    assert said in _refused(Base(id=str(folder)))


def test_an_unknown_scheduler_is_refused(folder: Path) -> None:
    _edit(folder / "scheduler" / "scheduler_config.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(UserError, match=r"scheduler 'StableDiffusionPipeline' .* is not one of diffusers"):
        _load(Base(id=str(folder)))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"cond_stage_model.transformer.x": 1}, "Stable Diffusion 1.x or 2.x"),
        ({"conditioner.embedders.0.model.x": 1}, "the SDXL refiner"),
        ({"lora_unet_x.lora_down.weight": 1}, "a LoRA"),
        ({"double_blocks.0.x": 1}, "FLUX"),
        ({"model.diffusion_model.joint_blocks.0.x": 1}, "Stable Diffusion 3"),
        ({"layer.weight": 1}, 'something else (its first tensor is "layer.weight")'),
    ],
)
def test_a_single_file_of_another_model_is_named(tmp_path: Path, tensors: dict[str, int], said: str) -> None:
    file = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(size) for name, size in tensors.items()}, file)
    assert f"is not SDXL but {said}" in _refused(Base(id=str(file)))


def test_pickles_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    for suffix in (".ckpt", ".pt", ".bin", ".pth"):
        file = tmp_path / f"model{suffix}"
        os.mkfifo(file)  # opening it would wait for ever
        assert "is a pickle" in _refused(Base(id=str(file)))
        assert "is a file: give a diffusers VAE folder" in _refused(Base(vae=str(file)))


def test_what_is_not_there_is_said_with_the_choices(tmp_path: Path) -> None:
    assert "no such folder; give tiny, a diffusers folder" in _refused(Base(id=str(tmp_path / "none")))
    assert "no such file" in _refused(Base(id=str(tmp_path / "none.safetensors")))
    assert "must be .safetensors" in _refused(Base(id=__file__))
    (tmp_path / "sd.ckpt").touch()
    assert "pickled weights in it are never loaded" in _refused(Base(id=str(tmp_path)))
    (tmp_path / "sdxl.safetensors").touch()
    assert "or the single file sdxl.safetensors inside it" in _refused(Base(id=str(tmp_path)))
    assert "the embedded base has none" in _refused(Base(revision=COMMIT))


def test_a_hub_id_needs_a_commit_and_says_the_way_out_when_it_cannot_be_had() -> None:
    assert "needs base.revision=COMMIT (40 hex digits)" in _refused(Base(id="owner/name"))
    assert "base.revision = 'main' can move" in _refused(Base(id="owner/name", revision="main"))
    assert "needs base.vae_revision=COMMIT" in _refused(Base(vae="owner/name"))
    said = _refused(Base(id="owner/name", revision=COMMIT))
    assert "HF_HUB_OFFLINE is set: give base=FOLDER (a local copy) or base=tiny" in said
    assert "give base.vae=FOLDER" in _refused(Base(vae="owner/name", vae_revision=COMMIT))


def test_an_unreachable_hub_is_one_line_within_seconds() -> None:
    code = (
        "import time; from sdxl_ray.config.schema import Base; from sdxl_ray.models.base_model import locate\n"
        "begin = time.monotonic()\n"
        f"try: locate(Base(id='owner/name', revision='{COMMIT}'))\n"
        "except ValueError as error: print(error)\n"
        "assert time.monotonic() - begin < 15"
    )
    # Port 9 of this machine: refused at once, whatever network there is.
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, timeout=300, capture_output=True, text=True
    )
    assert "the hub cannot be reached" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_commit_that_was_downloaded_needs_no_network(tmp_path: Path, monkeypatch, folder: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    base = Base(id="owner/name", revision=COMMIT)
    files = base_model.locate(base)
    assert files.revision == COMMIT
    assert files.path == snapshot
    assert _same(_load(base), _load(Base()))
    (snapshot / "vae" / UNET).unlink()
    assert "vae is incomplete" in _refused(base)


def test_only_the_full_precision_twin_is_downloaded() -> None:
    present = ["unet/a.safetensors", "unet/a.fp16.safetensors", "vae/b.fp16.safetensors", "vae/config.json"]
    assert hub.half_precision_twins(present) == ["unet/a.fp16.safetensors"]
