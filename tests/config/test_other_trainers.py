"""What users of other trainers type is answered with our setting, or with how to convert it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdxl_ray.config.other_trainers import OTHERWISE, SAME, answer
from sdxl_ray.config.recipe import load, settings
from sdxl_ray.errors import UserError
from tests.config.refused import refused
from tests.conftest import Here


def known() -> set[str]:
    """Every setting and section."""
    return {path.rsplit(".", depth)[0] for path in settings() for depth in range(3)}


def test_every_setting_that_an_answer_names_is_one_and_no_name_of_ours_is_answered() -> None:
    assert set(SAME) <= known()
    for how in OTHERWISE.values():
        for path in re.findall(
            r"\b(?:optim|data|tuning|parallel|checkpoint|evaluation|resources)\.[a-z_.]*[a-z_]", how
        ):
            assert path in known(), path
    theirs = [name for names in (*SAME.values(), *OTHERWISE) for name in names.split()]
    assert len(set(theirs)) == len(theirs)
    assert not set(theirs) & {path.rpartition(".")[2] for path in settings()}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("epochs", "optim.steps = epochs x images / optim.batch_size"),
        ("max_train_epochs", "optim.steps = epochs x images"),
        ("repeats", "optim.steps = repeats x epochs"),
        ("max_train_steps", "optim.steps"),
        ("learning_rate", "optim.lr"),
        ("unet_lr", "optim.lr"),
        ("train_batch_size", "optim.batch_size"),
        ("network_dim", "tuning.rank"),
        ("network_alpha", "tuning.alpha"),
        ("lr_scheduler", "optim.lr_scheduler"),
        ("lr_warmup_steps", "optim.warmup_steps"),
        ("mixed_precision", "parallel.precision"),
        ("gradient_accumulation_steps", "parallel.micro_batch"),
        ("max_grad_norm", "optim.max_grad_norm"),
        ("instance_data_dir", "data.images"),
        ("instance_prompt", "data.prompt"),
        ("num_class_images", "data.prior.num_class_images"),
        ("pretrained_model_name_or_path", "base"),
        ("output_dir", "--storage DIR"),
        ("use_8bit_adam", "optim.name=adamw8bit"),
        ("train_text_encoder", "tuning.text_encoders"),
        ("checkpointing_steps", "checkpoint.every"),
        ("resume_from_checkpoint", "the same command"),
        ("validation_prompt", "evaluation.prompts"),
        ("resolution", "data.resolution"),
        ("batch_size", "optim.batch_size"),
        ("rank", "tuning.rank"),
        ("snr_gamma", "objective.snr_gamma"),
        ("gradient_checkpointing", "parallel.gradient_checkpointing"),
    ],
)
def test_it_is_answered_wherever_it_is_typed(here: Here, tmp_path: Path, theirs: str, ours: str) -> None:
    lines = [refused({theirs: 1}), refused({f"checkpoint.{theirs}": 1}), refused({f"train.{theirs}": 1})]
    file = tmp_path / "mine.yaml"
    for text in (f"{theirs}: 1\n", f"checkpoint: {{{theirs}: 1}}\n"):
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            load(str(file))
        lines.append(str(caught.value))
    code, _, line = here("train", "tiny_lora", f"--{theirs.replace('_', '-')}", "1")
    assert code == 2
    for said in [*lines, line]:
        assert ours in said, said
        assert "did you mean 'eps'" not in said


def test_an_option_that_is_a_setting_is_written_without_dashes(here: Here) -> None:
    assert "optim.lr=VALUE" in here("train", "lora", "--optim.lr=1e-4")[2]
    assert "--storage" in here("train", "lora", "--storge", "x")[2]  # typer's own suggestion


def test_a_near_name_of_another_section_is_no_advice() -> None:
    assert "did you mean" not in refused({"resources.foo": 1})
    assert refused({"tuning.lr": 1}).endswith("did you mean 'optim.lr'?")
    assert answer("resources.foo") is None


def test_files_and_words_that_are_no_recipe_get_the_fix() -> None:
    for word, fix in (("kohya.toml", "its file is a .yaml"), ("data.images=x", "recipe comes before the settings")):
        with pytest.raises(UserError, match=fix):
            load(word)
