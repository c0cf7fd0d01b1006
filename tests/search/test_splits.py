"""What trials see of a search's held-out photos, and what only its end does."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from sdxl_ray.cli.tune import EXAMPLES
from sdxl_ray.config.recipe import Recipe, parse_assignments
from sdxl_ray.config.search_space import Space, divide, load_space, names
from sdxl_ray.data.image_sources import HELD_OUT
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.subject import photos_of
from sdxl_ray.search.final_evaluation import verdict
from sdxl_ray.search.search import search
from sdxl_ray.search.splits import final_photos, final_prompts, scored
from sdxl_ray.tiny._build import subjects
from sdxl_ray.training.in_training_evaluation import scoring_prompts
from sdxl_ray.training.run_directory import scan_images
from tests.cluster.files import FOLDER, objects

SUBJECT = 'data.images={} data.subject="sks dog" data.class_name=dog'


@pytest.fixture
def dog(tmp_path: Path) -> Path:
    """Ten photos in one folder, as a user has them."""
    folder = tmp_path / "photos" / "dog"
    folder.mkdir(parents=True)
    shipped = subjects.folder("dog")
    for number, path in enumerate(sorted([*shipped.glob("*.png"), *(shipped / HELD_OUT).glob("*.png")])):
        shutil.copy(path, folder / f"{number}.png")
    return folder


def _started(command: str, dog: Path) -> tuple[Space, Recipe]:
    """Space and recipe of a command, its images those of `dog`."""
    words = shlex.split(command)
    words = words[words.index("tune") + 1 :]
    mine, changes = divide(parse_assignments([word for word in words if "=" in word]))
    space = load_space(Path(words[0]).stem, mine)
    return space, space.start({**changes, "data.images": str(dog)})


def _printed() -> list[str]:
    """Every search that we tell people to start on photos of theirs."""
    jobs = [found.spec.entrypoint for found in objects() if found.kind == "RayJob"]
    heads = [(FOLDER.parent / "tune_spaces" / f"{name}.yaml").read_text().splitlines()[0] for name in names()]
    heads = [head.partition("sdxl-ray ")[2].replace("data.images=...", "data.images=photos/dog") for head in heads]
    return [line for line in (*EXAMPLES, *jobs, *heads) if "tune " in line and "data.images" in line]


def test_every_printed_search_on_photos_gets_as_far_as_its_images(dog: Path) -> None:
    commands = [*_printed(), "tune dreambooth_lora " + SUBJECT.format("photos/dog")]
    assert len(commands) == 5
    for command in commands:
        space, recipe = _started(command, dog)
        recipe.require_complete()
        space.check(recipe)
        images = scan_images(scored(space, recipe))
        assert (len(images.train), len(images.held_out)) == (6, 2), command
        assert final_photos(space, recipe).apart


@pytest.mark.parametrize(("changes", "tune", "final"), [({}, 2, 2), ({"data.holdout": 7}, 3, 4)])
def test_the_final_photos_are_none_that_a_trial_sees(changes: dict[str, int], tune: int, final: int, dog: Path) -> None:
    words = " ".join(f"{path}={value}" for path, value in changes.items())
    space, recipe = _started(f"tune lora {words} {SUBJECT.format('x')}", dog)
    trial = scan_images(scored(space, recipe))
    whole = scan_images(recipe)
    assert [p.key for p in trial.train] == [p.key for p in whole.train]
    seen = {photo.pixels for photo in photos_of(trial.held_out)}
    found = final_photos(space, recipe)
    kept = {photo.pixels for photo in found.photos}
    assert (len(seen), len(kept), found.apart) == (tune, final, True)
    assert not seen & kept
    assert seen | kept == {photo.pixels for photo in photos_of(whole.held_out)}


def test_too_few_photos_are_the_same_in_both_and_it_is_said(dog: Path) -> None:
    space, recipe = _started("tune lora data.holdout=3 " + SUBJECT.format("x"), dog)
    found = final_photos(space, recipe)
    assert (len(found.photos), found.apart) == (3, False)
    assert len(scan_images(scored(space, recipe)).held_out) == 3
    row = {"metric": "quality", "value": 0.2, "low": 0.1, "high": 0.3}
    assert "its photos are those that trials were scored by" in verdict([row], "quality", 3, found.split).sentence
    assert "photos" not in verdict([row], "quality", 3).sentence


def test_final_photos_that_trials_see_are_refused(dog: Path, tmp_path: Path) -> None:
    space, recipe = _started("tune lora " + SUBJECT.format("x"), dog)
    seen = photos_of(scan_images(scored(space, recipe)).held_out)[0]
    (tmp_path / "mine").mkdir()
    seen.image.save(tmp_path / "mine" / "again.png")
    plain = yaml.safe_load((FOLDER.parent / "tune_spaces" / "lora.yaml").read_text())
    mine = Space.model_validate(plain | {"final": {"photos": str(tmp_path / "mine")}})
    with pytest.raises(UserError, match=r"final.photos: trials are scored by 'again.png' too") as refused:
        final_photos(mine, recipe)
    assert "\n" not in str(refused.value)


def test_final_prompts_that_trials_are_scored_by_are_refused_before_anything_runs(tmp_path: Path) -> None:
    space = load_space("tiny_lora")
    recipe = space.start({})
    seen = scoring_prompts(scored(space, recipe)).of("tune")
    assert not set(seen) & set(final_prompts(space, recipe).of("final"))
    (tmp_path / "mine.txt").write_text(f"{{subject}} on a skateboard\n{seen[-1]}\n")
    said = {
        str(tmp_path / "mine.txt"): r"final\.prompts: trials are scored by .* too.*leave final\.prompts out",
        "tinny": "did you mean 'tiny'",
    }
    for prompts, line in said.items():
        with pytest.raises(UserError, match=line) as refused:
            search(load_space("tiny_lora", {"final.prompts": prompts}), recipe, storage=tmp_path / "runs", name="s")
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()
