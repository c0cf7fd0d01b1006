"""Settings that have no effect beside others, or with which nothing can be learnt: refused with the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sdxl_ray.config import experiment
from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.notes import recipe_notes
from sdxl_ray.config.plain_data import value_at
from sdxl_ray.config.recipe import Recipe, load, override
from sdxl_ray.config.schema import Prior
from sdxl_ray.config.search_space import load_space
from sdxl_ray.config.search_space import names as spaces
from sdxl_ray.errors import UserError
from tests.config.refused import refused

VAE = {"base": {"id": "a/b", "revision": "0" * 40}}


@pytest.mark.parametrize(
    ("changes", "enough"),
    [
        ({"objective.snr_gamma": 3.0}, {"objective.weighting": "min_snr"}),
        ({"objective.huber_delta": 0.3}, {"objective.loss": "huber"}),
        ({"objective.timestep_bias.multiplier": 2.0}, {"objective.timestep_bias.begin": 0.5}),
        ({"objective.timestep_bias.begin": 0.5}, {"objective.timestep_bias.multiplier": 2.0}),
        ({"objective.timestep_bias.end": 0.5}, {"objective.timestep_bias.multiplier": 2.0}),
        ({"optim.warmup_steps": 5}, {"optim.lr_scheduler": "constant_with_warmup"}),
        (
            {"optim.warmup_steps": 5, "optim.lr_scheduler": "piecewise_constant", "optim.step_rules": "1:9,0.1"},
            {"optim.lr_scheduler": "cosine", "optim.step_rules": None},
        ),
        ({"optim.lr_num_cycles": 2.0}, {"optim.lr_scheduler": "cosine"}),
        ({"optim.lr_power": 2.0}, {"optim.lr_scheduler": "polynomial"}),
        ({"optim.text_lr": 1e-5}, {"tuning.text_encoders": [2]}),
        ({"tuning": {"kind": "full"}, "optim.text_lr": 1e-5}, {"tuning.text_encoders": [2]}),
        ({"tuning.text_target_modules": ["q_proj"]}, {"tuning.text_encoders": [1]}),
        ({"data.crop_variants": 9}, {"data.crop": "random"}),
        ({**VAE, "base.vae_revision": "0" * 40}, {"base.vae": "c/d"}),
        ({"base.config": "configs"}, {"base.id": "x.safetensors"}),
    ],
    ids=",".join,
)
def test_what_has_no_effect_is_refused_until_it_has_one(changes: dict[str, Any], enough: dict[str, Any]) -> None:
    line = refused(changes)
    assert "has no effect here: " in line
    assert "or " in line
    override(Recipe(), {**changes, **enough})


def test_the_fix_names_both_ways_out() -> None:
    line = refused({"optim.lr_scheduler": "constant"}, load("lora"))
    assert line == (
        "recipe: optim.warmup_steps = 25 has no effect here: set optim.lr_scheduler=constant_with_warmup, "
        "or optim.warmup_steps=0"
    )
    override(load("lora"), {"optim.lr_scheduler": "constant", "optim.warmup_steps": 0})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"optim.name": "prodigy"}, "optim.lr = 0.0001: prodigy estimates the rate"),
        ({"optim.name": "prodigy", "optim.lr": 50.0}, "set optim.lr=1.0"),
        (
            {"optim.name": "prodigy", "optim.lr": 1.0, "optim.text_lr": 0.5, "tuning.text_encoders": [1]},
            "optim.text_lr = 0.5: prodigy finds one rate for all weights",
        ),
        ({"objective.weighting": "min_snr", "objective.snr_gamma": 0.1}, "snr_gamma = 0.1 all but removes the loss"),
        ({"objective.weighting": "min_snr", "objective.snr_gamma": 5000.0}, "as weighting none"),
        ({"tuning.text_encoders": [1, 1]}, "names one twice"),
        ({"data.prompt": "a photo of [trigger]"}, "nothing replaces [trigger]"),
        ({"data.subject": "{} dog"}, "nothing replaces {}"),
        ({"evaluation.prompts": ["<token> on a beach"]}, "nothing replaces <token>"),
        ({"data.prior": {"prompt": "a [class]"}}, "data.prior.prompt"),
        ({"data.images": "dogs", "data.prior": {"images": "dogs"}}, "is data.images too"),
        (
            {"data.subject": "sks dog", "data.prior": {"prompt": "a photo of SKS  dog"}},
            "names the subject 'sks dog': class images are of the class alone, as 'a photo of a dog'",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], line: str) -> None:
    assert line in refused(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim.name": "prodigy", "optim.lr": 1.0},
        {"data.subject": "[V] dog", "data.prompt": "a photo of [V] dog"},
        {"data.prompt": "a sign [closed] by the sea, 5 < 6 > 2"},
        {"data.subject": "sks", "data.class_name": "dog", "data.prior": {"prompt": "a dog, no skster"}},
    ],
)
def test_what_may_be_meant_is_taken(changes: dict[str, Any]) -> None:
    plain = override(Recipe(), changes).model_dump(mode="json")
    for path, value in changes.items():
        found = value_at(plain, path)
        assert (found.items() >= value.items()) if isinstance(value, dict) else (found == value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim.lr": 1.0}, "optim.lr=1 may diverge"),
        ({"optim.lr": 1e-9}, "hardly moves a weight"),
        ({"base": {"id": "a/b"}, "tuning": {"kind": "full"}, "optim.lr": 1e-4}, "full tuning of this base takes 1e-08"),
        ({"tuning.text_encoders": [1], "optim.text_lr": 1.0}, "optim.text_lr=1 may diverge"),
        (
            {"optim.name": "prodigy", "optim.lr": 1.0, "optim.lr_scheduler": "cosine_with_restarts"},
            "advise constant or",
        ),
        ({"tuning.alpha": 2000.0}, "is a strength of 125"),
        ({"objective.noise_offset": 1.0}, "objective.noise_offset=1 "),
        ({"optim.warmup_steps": 400, "optim.lr_scheduler": "cosine"}, "warmup_steps=400 of 500 steps"),
        ({"optim.ema_decay": 0.9999}, "optim.ema_decay=0.9999 is too slow for 500 steps"),
        ({"checkpoint.every": 501}, "checkpoint.every=501 is beyond the last step (500)"),
        ({"evaluation.every": 501}, "evaluation.every=501 is beyond the last step (500)"),
        ({"data.holdout": 4, "data.validation": "held"}, "data.holdout=4 is not used"),
        ({"data.caption_dropout": 1.0}, "most steps see no caption"),
        (
            {"data.class_name": "dog", "data.prior": {"prior_loss_weight": 0}},
            "class images cost time and teach nothing",
        ),
        ({"data.class_name": "dog", "data.prior": {"ratio": 0.01}}, "is 0.04 class images: 1 is used"),
        (
            {"data.class_name": "dog", "data.prior": {"num_class_images": 2}},
            "data.prior.num_class_images=2 is less than one batch",
        ),
        ({"data.class_name": "dog", "data.prior": {"prompt": "a cat"}}, "does not name data.class_name='dog'"),
        ({"evaluation.scores": "never", "evaluation.patience": 9}, "evaluation.patience: not used"),
        ({"evaluation.every": 0, "evaluation.clip": "x"}, "(evaluation.every=0)"),
        ({"data.holdout": 0, "evaluation.draws": 2}, "evaluation.draws=2 is not used"),
        ({"parallel.engine": "local", "parallel.zero_stage": 3}, "parallel.zero_stage: not used by"),
        ({"parallel.engine": "local", "resources.gpus_per_worker": 0}, "resources.gpus_per_worker: not used by"),
        ({"base": {"id": "x.safetensors", "revision": "0" * 40}}, "'x.safetensors' is a file, which has no commits"),
        ({"parallel.micro_batch": 8}, "parallel.micro_batch=8 is more than"),
        ({"parallel.workers": [1, 8]}, "parallel.workers=8: a batch has 4 images"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_changes_nothing_or_is_unusual_is_one_note(changes: dict[str, Any], words: str) -> None:
    (note,) = recipe_notes(override(Recipe(), changes))
    assert words in note
    assert "\n" not in note


def test_what_ships_gives_no_note() -> None:
    recipes = [load(name) for name in recipe_files.names()]
    recipes += [run.recipe for name in experiment.names() for run in experiment.load_experiment(name).runs({})]
    searched = [load_space(name).start({}) for name in spaces()]
    assert [recipe_notes(recipe) for recipe in recipes] == [[]] * len(recipes)
    assert [recipe_notes(recipe, search=True) for recipe in searched] == [[]] * len(searched)


def test_the_class_prompt_of_a_subject_is_no_mention_of_it() -> None:
    recipe = override(load("dreambooth"), {"data.subject": "sks dog", "data.class_name": "dog"})
    assert recipe.data.prior == Prior(num_class_images=200)
    assert recipe_notes(recipe) == []


def _space(path: Path, **parameters: Any) -> None:
    plain = {"recipe": "tiny_lora", "budget": {"trials": 2}, "parameters": parameters}
    plain["settings"] = {"evaluation.every": 100}
    path.write_text(yaml.safe_dump(plain))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (
            {"optim.lr_power": {"kind": "uniform", "low": 2, "high": 3}},
            "parameters.optim.lr_power: optim.lr_power = 2.0 has no",
        ),
        ({"optim.text_lr": {"kind": "uniform", "low": 1e-5, "high": 1e-4}}, "set tuning.text_encoders"),
        (
            {
                "objective.weighting": {"kind": "choice", "values": ["min_snr", "none"]},
                "objective.snr_gamma": {"kind": "uniform", "low": 1, "high": 9},
            },
            "a trial can have objective.snr_gamma=1.0 and objective.weighting='none'",
        ),
        (
            {
                "optim.steps": {"kind": "randint", "low": 20, "high": 400},
                "optim.warmup_steps": {"kind": "randint", "low": 0, "high": 19},
                "optim.lr_scheduler": {"kind": "choice", "values": ["cosine", "constant"]},
            },
            "a trial can have optim.lr_scheduler='constant' and optim.warmup_steps=19",
        ),
    ],
)
def test_a_search_of_what_trials_ignore_is_refused(tmp_path: Path, parameters: dict[str, Any], words: str) -> None:
    _space(tmp_path / "space.yaml", **parameters)
    space = load_space(str(tmp_path / "space.yaml"))
    with pytest.raises(UserError) as caught:
        space.check(space.start({"optim.warmup_steps": 0}))
    assert words in str(caught.value)


def test_a_random_search_has_no_startup(tmp_path: Path) -> None:
    _space(tmp_path / "space.yaml", **{"optim.lr": {"kind": "loguniform", "low": 1e-4, "high": 1e-3}})
    with pytest.raises(UserError, match="n_startup_trials 8 has no effect"):
        load_space(str(tmp_path / "space.yaml"), {"searcher.kind": "random", "searcher.n_startup_trials": 8})
