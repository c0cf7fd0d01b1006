"""The shipped files: whole, listed, read only when needed, and plain models in fp32 to every library."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.io.safetensors_files import read_json
from sdxl_ray.models.base_model import load_components, locate
from sdxl_ray.tiny import shipped, unknown_words, vocabulary
from sdxl_ray.tiny._build import layout

EYE = "scorers/identity/model.safetensors"
UNET = "base/unet/diffusion_pytorch_model.safetensors"
MODELS = ("vae", "unet", "text_encoder", "text_encoder_2")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the shipped tree that a test may break."""
    for part in shipped.LISTED:
        shutil.copytree(shipped.ROOT / part, tmp_path / part)
    shutil.copy(shipped.ROOT / shipped.INDEX, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def plain(embedded: Path) -> StableDiffusionXLPipeline:
    """The embedded base as a stranger loads it: no dtype, no option."""
    return StableDiffusionXLPipeline.from_pretrained(embedded)


def test_the_index_lists_every_file_and_its_hash_and_names_the_revision(tree: Path) -> None:
    index = (tree / shipped.INDEX).read_bytes()
    shipped.write_index(tree)
    assert (tree / shipped.INDEX).read_bytes() == index
    assert shipped.index_revision() == hashlib.sha256(index).hexdigest()
    assert shipped.revision() == locate(Base()).revision
    assert sum((shipped.ROOT / name).stat().st_size for name in shipped.files()) <= 32 * 2**20
    for part in (shipped.BASE, shipped.CLIP, shipped.IDENTITY):
        assert shipped.verify(part) == part
    (tree / EYE).write_bytes(b"another")
    shipped.write_index(tree)
    assert shipped.revision(tree) == shipped.revision()  # what was trained on the base is still of this base
    assert shipped.index_revision(tree) != shipped.index_revision()
    (tree / UNET).write_bytes(b"another")
    shipped.write_index(tree)
    assert shipped.revision(tree) != shipped.revision()
    assert shipped.verify(tree / "base", tree) == tree / "base"


def _flip(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)


def _rewrap(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (UNET, Path.unlink, "missing (expected SHA-256 {expected})"),
        (UNET, _flip, "altered (expected SHA-256 {expected}, found {found})"),
        ("base/tokenizer/tokenizer.json", _rewrap, "altered (expected SHA-256 {expected}, found {found})"),
        ("base/scheduler/scheduler_config.json", lambda f: f.write_bytes(b""), "altered (expected SHA-256 {expected}"),
    ],
)
def test_a_missing_or_altered_file_is_named_with_its_hash_and_the_way_out(
    tree: Path, name: str, damage: Callable[[Path], object], said: str
) -> None:
    damage(tree / name)
    found = hashlib.sha256((tree / name).read_bytes()).hexdigest() if (tree / name).exists() else ""
    with pytest.raises(UserError) as caught:
        shipped.verify(tree / "base", tree)
    message = str(caught.value)
    assert f"{name} is {said.format(expected=shipped.files()[name], found=found)}" in message
    assert f"reinstall sdxl-ray, or in a git clone run `git checkout -- sdxl_ray/tiny/{name}`" in message
    assert "`python -m sdxl_ray.tiny._build.build`" in message
    assert "\n" not in message
    shipped.verify(tree / "scorers" / "clip", tree)  # the others are whole


def test_a_part_is_hashed_once_and_a_broken_one_again_once_it_is_mended(tree: Path) -> None:
    whole = (tree / UNET).read_bytes()
    _flip(tree / UNET)
    with pytest.raises(UserError):
        shipped.verify(tree / "base", tree)
    (tree / UNET).write_bytes(whole)
    shipped.verify(tree / "base", tree)
    (tree / UNET).unlink()
    shipped.verify(tree / "base", tree)


@pytest.mark.parametrize(
    ("index", "said"),
    [(None, "files.json is missing"), ("{", "files.json is altered"), ('["a"]', "altered"), ("{}", "lists nothing in")],
)
def test_a_broken_index_is_one_line(tree: Path, index: str | None, said: str) -> None:
    (tree / shipped.INDEX).unlink()
    if index is not None:
        (tree / shipped.INDEX).write_text(index)
    with pytest.raises(UserError, match=rf"{said}.*: reinstall sdxl-ray, .* sdxl_ray/tiny/files.json"):
        shipped.verify(tree / "base", tree)


def test_a_recipe_on_a_broken_base_is_refused_before_anything_starts(tree: Path, monkeypatch) -> None:
    _flip(tree / UNET)
    monkeypatch.setattr(shipped, "folder", lambda: shipped.verify(tree / "base", tree))
    with pytest.raises(UserError, match=f"embedded base's {UNET} is altered"):
        locate(Base())


def test_importing_and_naming_the_revision_read_no_weights() -> None:
    code = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, about: event == 'open' and opened.append(str(about[0])))\n"
        "import sdxl_ray, sdxl_ray.__main__, sdxl_ray.models.base_model_files, sdxl_ray.plan\n"
        "from sdxl_ray.tiny import shipped, unknown_words\n"
        "assert not [name for name in opened if '/tiny/base/' in name or '/scorers/' in name or 'files.json' in name]\n"
        "assert len(shipped.revision()) == 64 and shipped.files()\n"
        "assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()\n"
        "def weights(): return [name for name in opened if name.endswith('.safetensors')]\n"
        "assert not weights(), weights()\n"
        "shipped.folder(); shipped.folder()\n"
        "assert len(weights()) == 4, weights()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_weights_are_half_precision_and_load_plainly_as_full(
    embedded: Path, plain: StableDiffusionXLPipeline
) -> None:
    for name in MODELS:
        stored = load_file(next((embedded / name).glob("*.safetensors")))
        assert {value.dtype for value in stored.values()} == {torch.float16}
        loaded = getattr(plain, name).state_dict()
        assert {value.dtype for value in loaded.values()} == {torch.float32}
        # transformers renames on the way; the numbers are the same.
        assert len(stored) == len(loaded)
        assert sum(v.double().sum() for v in loaded.values()) == sum(v.double().sum() for v in stored.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_our_loading_gives_the_same_weights_in_the_precision_asked_for(
    plain: StableDiffusionXLPipeline, dtype: torch.dtype
) -> None:
    parts = load_components(locate(Base()), Base(), dtype=dtype, device="cpu")
    assert parts.vae.dtype == torch.float32
    ours = dict(zip(MODELS, (parts.vae, parts.unet, *parts.text_encoders), strict=True))
    for name, model in ours.items():
        expected = torch.float32 if name == "vae" else dtype
        for key, value in getattr(plain, name).state_dict().items():
            assert torch.equal(model.state_dict()[key], value.to(expected)), (name, key)


def test_it_is_a_plain_sdxl_with_the_layout_promised(plain: StableDiffusionXLPipeline) -> None:
    counts = {name: sum(weight.numel() for weight in getattr(plain, name).parameters()) for name in MODELS}
    tokens = len(vocabulary.bpe()[0])
    assert counts == {
        "vae": 648_375,
        "unet": 4_370_660,
        "text_encoder": 102_144 + 64 * tokens,
        "text_encoder_2": 615_552 + 128 * tokens,
    }
    assert plain.config.force_zeros_for_empty_prompt is True
    assert plain.vae_scale_factor == 4
    assert plain.default_sample_size == 16
    assert plain.vae.config.scaling_factor == 1.0
    assert plain.scheduler.config.timestep_spacing == "leading"
    assert plain.tokenizer.model_max_length == plain.tokenizer_2.model_max_length == 32


def test_the_layout_agrees_with_the_shipped_files(embedded: Path) -> None:
    for part, config in layout.configs().items():
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        written = read_json(embedded / part / file)
        assert {key: written.get(key) for key in config} == config, part
    for name in shipped.files():
        if name.endswith(".json"):
            assert "_name_or_path" not in (shipped.ROOT / name).read_text()


def test_every_known_word_is_one_token_and_any_prompt_can_be_drawn(plain: StableDiffusionXLPipeline) -> None:
    strange = 'Ünï©ödé 漢字 🦊 q9x7! <tag> "quoted" a_b\tc'
    for tokenizer in (plain.tokenizer, plain.tokenizer_2):
        for word in vocabulary.words():
            assert len(tokenizer(word).input_ids) == 3, word
        inside = tokenizer(strange).input_ids[1:-1]
        assert len(inside) > 20
        # The end token is also the unknown token.
        assert tokenizer.eos_token_id not in inside
    plain.set_progress_bar_config(disable=True)
    image = plain(strange, num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.getextrema() != ((0, 0),) * 3


def test_unknown_words_are_those_that_are_spelled_in_pieces(plain: StableDiffusionXLPipeline) -> None:
    texts = ["A photo of Zorblax, the dog's blorp_9 in Ünï!", "zorblax and x isn't 12 sks"]
    unknown = unknown_words.unknown_words(texts)
    assert unknown == ["zorblax", "blorp", "ünï", "isn"]
    assert all(len(plain.tokenizer(word).input_ids) > 3 for word in unknown)
    assert unknown_words.unknown_words([" ".join(vocabulary.words()), ""]) == []


def test_latents_have_about_unit_variance_and_a_narrow_posterior(plain: StableDiffusionXLPipeline) -> None:
    with Image.open(shipped.ROOT / "subjects" / "robot" / "0.png") as image:
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, 64, 64, 3)
    image_BCHW = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        posterior = plain.vae.encode(image_BCHW).latent_dist
    assert 0.4 < posterior.mean.std() < 2.5
    assert 0 < posterior.std.mean() < 0.3
