"""Recipe files: what stands in them, what they extend, and one line for those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdxl_ray.config.experiment import load_experiment
from sdxl_ray.config.recipe import Recipe, load, override
from sdxl_ray.errors import UserError


def test_recipes_that_are_not_there_or_not_recipes(tmp_path: Path) -> None:
    cases = {
        "empty.yaml": ("", None),
        "list.yaml": ("- 1\n", "a list, not a mapping"),
        "broken.yaml": ("optim:\n  lr: [1\n", "line"),
        "typo.yaml": ("optim:\n  lrr: 1\n", "did you mean 'lr'?"),
        "section.yaml": ("optim: 3\n", "optim = 3"),
        "loop.yaml": ("extends: PATH/loop.yaml\n", "extends itself"),
        "parent.yaml": ("extends: lroa\n", "did you mean 'lora'?"),
        "binary.yaml": (b"\xff\xfe\x00", "cannot be read"),
    }
    for name, (text, line) in cases.items():
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.replace("PATH", str(tmp_path)).encode())
        if line is None:
            assert load(str(path)) == Recipe()
            continue
        with pytest.raises(UserError) as caught:
            load(str(path))
        assert line in str(caught.value), name
        assert "\n" not in str(caught.value), name
    with pytest.raises(UserError, match="did you mean 'lora'"):
        load("lor")
    with pytest.raises(UserError, match=r"none\.yaml"):
        load(str(tmp_path / "none.yaml"))


def test_a_key_that_stands_twice_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    for text in ("optim: {lr: 1, lr: 2}", "optim:\n  lr: 1\noptim:\n  lr: 2"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"is not YAML at line \d+: .*stands twice"):
            load(str(path))
    path.write_text("x: &x {lr: 1.0e-3}\noptim: {<<: *x, steps: 5}")
    with pytest.raises(UserError, match="no setting 'x'"):  # a merge is no second key
        load(str(path))


def test_text_of_a_file_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('data: {class_name: "2024", subject: 2024-13-45}\noptim: {lr: 1e-3, eps: 1E-7}\n')
    mine = load(str(path))
    assert (mine.data.class_name, mine.data.subject, mine.optim.lr, mine.optim.eps) == (
        "2024",
        "2024-13-45",
        1e-3,
        1e-7,
    )
    path.write_text("data: {class_name: 0x_}\n")
    assert load(str(path)).data.class_name == "0x_"


def test_extends_merges_below_the_child(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: lora\ntuning: {rank: 4}\noptim: {lr: 1e-3}\n")
    mine = load(str(tmp_path / "mine.yaml"))
    assert mine == override(load("lora"), {"tuning.rank": 4, "optim.lr": 1e-3})


def test_extends_is_read_from_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "below.yaml").write_text("extends: ../lowest.yaml\nseed: 7\n")
    (tmp_path / "lowest.yaml").write_text("extends: lora\ntuning: {rank: 4}\n")
    (tmp_path / "mine.yaml").write_text("extends: deep/below.yaml\n")
    assert load(str(tmp_path / "mine.yaml")) == override(load("lora"), {"tuning.rank": 4, "seed": 7})
    (tmp_path / "lowest.yaml").write_text("extends: mine.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load(str(tmp_path / "mine.yaml"))


def test_a_name_of_the_users_own_is_shown_though_it_is_a_kind_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("arms: {lora: {recpe: lora}}\n")
    with pytest.raises(UserError, match=r"no setting 'arms\.lora\.recpe': did you mean 'recipe'"):
        load_experiment(str(path))
