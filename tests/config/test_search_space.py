"""Spaces: every shipped file holds together, and what is wrong with one is said in a line before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdxl_ray.config.search_space import METRICS, Space, divide, load_space, names
from sdxl_ray.errors import UserError
from tests.conftest import Here

ROOT = Path(__file__).parents[2] / "tune_spaces"
LR: dict[str, Any] = {"kind": "loguniform", "low": 1e-4, "high": 1e-2}


def plain(**changes: Any) -> dict[str, Any]:
    """A small space that is right."""
    return {"recipe": "tiny_lora", "budget": {"trials": 4}, "parameters": {"optim.lr": LR}} | changes


def written(folder: Path, **changes: Any) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(plain(**changes), sort_keys=False))
    return str(path)


def refused(folder: Path, **changes: Any) -> str:
    """The one line that a space with `changes` earns, when it is read or when it is checked against its recipe."""
    with pytest.raises(UserError) as caught:
        space = load_space(written(folder, **changes))
        space.check(space.start({}))
    line = str(caught.value)
    assert "\n" not in line
    assert "pydantic" not in line
    return line


def test_every_shipped_space_is_sound() -> None:
    assert names() == ["dreambooth", "dreambooth_lora", "lora", "tiny_dreambooth", "tiny_dreambooth_lora", "tiny_lora"]
    assert len(list(ROOT.iterdir())) == len(names())
    for name in names():
        space = load_space(name)
        assert space == load_space(str(ROOT / f"{name}.yaml"))
        recipe = space.start({})
        space.check(recipe)
        assert recipe.base.id == ("tiny" if name.startswith("tiny") else "stabilityai/stable-diffusion-xl-base-1.0")
        assert Space.model_validate_json(space.model_dump_json()) == space


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": {"optim.lrr": LR}}, "no setting 'optim.lrr': did you mean 'lr'"),
        ({"parameters": {"optm.lr": LR}}, "did you mean 'optim'"),
        ({"parameters": {"optim.lr": LR | {"low": 1e-2, "high": 1e-4}}}, "low 0.01 must be below high 0.0001"),
        ({"parameters": {"optim.lr": LR | {"low": 0}}}, "parameters.optim.lr.low = 0"),
        ({"parameters": {"optim.lr": LR | {"step": 1}}}, "no setting 'parameters.optim.lr.step'"),
        ({"parameters": {"optim.lr": {"kind": "lognormal"}}}, "lognormal"),
        ({"parameters": {"tuning.dropout": {"kind": "uniform", "low": 0, "high": 1}}}, "tuning.dropout"),
        ({"parameters": {"tuning.rank": {"kind": "uniform", "low": 1, "high": 8}}}, "tuning.rank"),
        ({"parameters": {"tuning.rank": {"kind": "randint", "low": 0, "high": 8, "log": True}}}, "has no logarithm"),
        ({"parameters": {"objective.weighting": {"kind": "choice", "values": ["none", "min-snr"]}}}, "min-snr"),
        ({"parameters": {"parallel.workers": {"kind": "randint", "low": 1, "high": 4}}}, "cannot be searched"),
        ({"parameters": {"seed": {"kind": "randint", "low": 0, "high": 9}}}, "luck"),
        ({"parameters": {"optim.lr": LR | {"when": {"tuning.kin": "lora"}}}}, "did you mean 'tuning.kind'"),
        ({"parameters": {"optim.lr": LR | {"when": {"tuning.kind": "full"}}}}, "never holds, it is 'lora'"),
        ({"parameters": {}}, "parameters"),
        ({"metric": "qualty"}, "no metric 'qualty': did you mean 'quality'"),
        ({"metric": ["quality", "quality"]}, "same metric twice"),
        ({"metric": ["dino_i", "pres"]}, "asha needs one metric"),
        ({"metric": ["dino_i", "pres"], "mode": "max", "scheduler": {"kind": "none"}}, "2 metrics and 1 modes"),
        ({"mode": "maximum"}, "mode"),
        ({"searcher": {"kind": "nsga2"}}, "nsga2 is for several metrics"),
        ({"searcher": {"kind": "bohb"}}, "searcher.kind = 'bohb'"),
        ({"scheduler": {"kind": "none", "grace_period": 5}}, "kind none has no settings"),
        ({"budget": {}}, "a search needs an end"),
        ({"budget": {"trials": 0}}, "budget.trials = 0"),
        ({"budget": {"steps": 299}}, "budget.steps=299 is less than one trial of 300 steps"),
        ({"settings": {"evaluation.every": 0}}, "evaluation.every=0 of optim.steps=300 has none"),
        ({"scheduler": {"grace_period": 300}}, "grace_period=300 is not below the last step (300), so no trial"),
        ({"metric": "validation_loss", "settings": {"data.holdout": 0}}, "there are none: set data.holdout=1 or more"),
        ({"parameters": {"data.holdout": {"kind": "randint", "low": 1, "high": 4}}}, "is what trials are judged by"),
        ({"parameters": {"data.validation": {"kind": "choice", "values": ["a", "b"]}}}, "is what trials are judged by"),
        ({"parameters": {"data.images": {"kind": "choice", "values": ["a", "b"]}}}, "is what is learnt, not how"),
        ({"parameters": {"data.subject": {"kind": "choice", "values": ["a", "b"]}}}, "is what is learnt, not how"),
        ({"parameters": {"data.class_name": {"kind": "choice", "values": ["a", "b"]}}}, "is what is learnt, not how"),
        ({"parameters": {"data": {"kind": "choice", "values": [{}]}}}, "'data' cannot be searched"),
        ({"max_concurrent_trials": 0}, "max_concurrent_trials = 0"),
        ({"settings": {"optim.lrr": 1}}, "did you mean 'lr'"),
        ({"recipe": "tiny_lra"}, "did you mean 'tiny_lora'"),
        ({"final": {"seed": 3}}, "did you mean 'seeds'"),
    ],
)
def test_what_is_wrong_is_one_line(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, **changes)


def test_a_budget_counts_the_longest_trial(tmp_path: Path) -> None:
    parameters = {"optim.lr": LR, "optim.steps": {"kind": "randint", "low": 200, "high": 600}}
    assert "one trial of 600 steps" in refused(tmp_path, parameters=parameters, budget={"steps": 599})


def test_a_condition_must_come_after_what_it_names(tmp_path: Path) -> None:
    gamma = {"kind": "uniform", "low": 1, "high": 9, "when": {"objective.weighting": "min_snr"}}
    weighting = {"kind": "choice", "values": ["none", "min_snr"]}
    path = written(tmp_path, parameters={"objective.snr_gamma": gamma, "objective.weighting": weighting})
    space = load_space(path)
    with pytest.raises(UserError, match="comes later: move it up"):
        space.check(space.start({}))


def test_conditions_decide_what_is_sampled(tmp_path: Path) -> None:
    parameters = {
        "objective.weighting": {"kind": "choice", "values": ["none", "min_snr", "debiased"]},
        "objective.snr_gamma": {"kind": "uniform", "low": 1, "high": 9, "when": {"objective.weighting": "min_snr"}},
        "tuning.rank": {"kind": "randint", "low": 2, "high": 8, "when": {"objective.weighting": ["none", "min_snr"]}},
    }
    space = load_space(written(tmp_path, parameters=parameters))
    recipe = space.start({})
    space.check(recipe)
    for weighting, expected in (
        ("none", {"objective.weighting", "tuning.rank"}),
        ("min_snr", set(parameters)),
        ("debiased", {"objective.weighting"}),
    ):
        values = {"objective.weighting": weighting, "objective.snr_gamma": 2.0, "tuning.rank": 4}
        assert set(space.sample(recipe, lambda path, _, values=values: values[path])) == expected
    assert space.defaults(recipe) == {"objective.weighting": "min_snr", "objective.snr_gamma": 5.0, "tuning.rank": 4}


def test_modes_are_the_metrics_own_unless_given() -> None:
    several = plain(metric=["dino_i", "pres"], scheduler={"kind": "none"}, searcher={"kind": "nsga2"})
    assert Space.model_validate(several).modes == {"dino_i": "max", "pres": "min"}
    assert Space.model_validate(plain(mode="min")).modes == {"quality": "min"}
    assert not Space.model_validate(plain(metric="validation_loss")).scored
    assert METRICS["validation_loss"] == "min"


def test_the_command_line_reaches_both_space_and_recipe() -> None:
    mine, recipe = divide({"budget.trials": 8, "optim.lr": 1e-4, "searcher.kind": "random", "data.images": "x"})
    assert mine == {"budget.trials": 8, "searcher.kind": "random"}
    assert recipe == {"optim.lr": 1e-4, "data.images": "x"}
    space = load_space("tiny_lora", mine)
    assert (space.budget.trials, space.searcher.kind) == (8, "random")
    with pytest.raises(UserError, match="did you mean 'trials'"):
        load_space("tiny_lora", {"budget.trails": 8})


def test_the_schema_is_printed_and_is_the_codes_own(here: Here) -> None:
    code, out, _ = here("tune", "--schema")
    assert code == 0
    schema = json.loads(out)
    assert schema == Space.model_json_schema()
    kinds = {
        schema["$defs"][name]["properties"]["kind"]["const"] for name in ("LogUniform", "Uniform", "Int", "Choice")
    }
    assert kinds == {"loguniform", "uniform", "randint", "choice"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            (),
            "which space? Give a .yaml file or one of dreambooth, dreambooth_lora, lora, tiny_dreambooth, "
            "tiny_dreambooth_lora, tiny_lora",
        ),
        (("tiny_lra",), "no space named 'tiny_lra': did you mean 'tiny_lora'"),
        (("lora",), "data.images is not set"),
        (("tiny_lora", "optim.lrr=1"), "did you mean 'lr'"),
        (("tiny_lora", "budget.steps=10"), "budget.steps=10 is less than one trial"),
        (("tiny_lora", "metric=fid"), "no metric 'fid'"),
        (("tiny_lora", "--resume", "--name", "none"), "no search to resume in"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: tuple[str, ...], said: str, here: Here) -> None:
    code, out, err = here("tune", *words)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]
