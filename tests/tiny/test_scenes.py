"""Scenes: what a caption says is in the image, and what is held out never is."""

from __future__ import annotations

import re
from typing import Any, cast

import numpy as np
import pytest

from sdxl_ray.tiny._build import scene_store
from sdxl_ray.tiny._build.captions import caption, describe, with_article
from sdxl_ray.tiny._build.catalog import CLASSES, COLORS, DRAWINGS, RESERVED, SUBJECTS, Design, known_designs
from sdxl_ray.tiny._build.designs import Designs, recolored
from sdxl_ray.tiny._build.places import PLACES
from sdxl_ray.tiny._build.scenes import DECOYS, EDGE, NOTHING, Scenery, decoy, held_out_pairs
from sdxl_ray.tiny.vocabulary import IDENTIFIERS, words
from tests.tiny.drawn_sprites import DrawnSprites

SCENES = 400


@pytest.fixture(scope="module")
def scenery() -> Scenery:
    return Scenery(Designs(cast(Any, DrawnSprites())), seed=1, variants=2)


def test_a_scene_is_a_function_of_its_number(scenery: Scenery) -> None:
    again = Scenery(Designs(cast(Any, DrawnSprites())), seed=1, variants=2)
    for number in (0, 7, 99):
        one, other = scenery.scene(number), again.scene(number)
        assert one.image.tobytes() == other.image.tobytes()
        assert (one.designs, one.place, one.time_ids) == (other.designs, other.place, other.time_ids)
    assert scenery.scene(1).image.tobytes() != scenery.scene(2).image.tobytes()


def test_no_training_scene_shows_what_is_held_out(scenery: Scenery) -> None:
    pairs = held_out_pairs()
    assert len(pairs) == len(CLASSES) * len(PLACES) // 10
    for number in range(SCENES):
        scene = scenery.scene(number)
        for design in scene.designs:
            assert (design.class_name, scene.place) not in pairs
            assert (design.class_name, design.set_name) not in RESERVED


def test_every_class_has_drawings_left_and_every_subject_is_reserved() -> None:
    known = {(design.class_name, design.set_name) for design in known_designs()}
    assert not known & RESERVED
    assert {name for name, _ in known} == set(CLASSES)
    assert len(SUBJECTS) >= 12
    for design in SUBJECTS.values():
        assert design.set_name in DRAWINGS[design.class_name]


def test_scenes_vary_what_words_control(scenery: Scenery) -> None:
    scenes = [scenery.scene(number) for number in range(SCENES)]
    counts = {count: sum(len(scene.designs) == count for scene in scenes) / SCENES for count in (0, 1, 2)}
    assert counts[1] > 0.8
    assert counts[0] > 0
    assert counts[2] > 0.03
    singles = [scene.designs[0] for scene in scenes if len(scene.designs) == 1]
    colored = sum(bool(design.color) for design in singles) / len(singles)
    assert 0.2 < colored < 0.5
    assert {scene.place for scene in scenes} == set(PLACES)
    assert all(scene.image.size == (EDGE, EDGE) for scene in scenes)
    assert any(scene.time_ids[0] < EDGE for scene in scenes)
    assert any(scene.time_ids[2] or scene.time_ids[3] for scene in scenes)


def test_the_map_says_what_covers_the_image(scenery: Scenery) -> None:
    rng = np.random.default_rng(0)
    scene = scenery.compose((Design("frog", "flat"),), "beach", rng)
    covered = scene.grid == CLASSES.index("frog")
    assert covered[3:5, 3:5].all()
    assert 10 < covered.sum() < 60
    assert set(np.unique(scene.grid)) == {CLASSES.index("frog"), NOTHING}


def test_captions_use_words_that_the_base_knows(scenery: Scenery) -> None:
    known = set(words())
    said = 0
    for number in range(SCENES):
        scene = scenery.scene(number)
        text, place_said = scenery.caption(scene, np.random.default_rng(number))
        assert set(re.findall(r"[a-z0-9]+", text)) <= known, text
        for design in scene.designs:
            assert describe(design) in text
        assert any(phrase in text for phrase in PLACES[scene.place].phrases) == place_said or not place_said
        said += place_said
    assert 0.8 < said / SCENES < 0.97


def test_a_share_of_captions_carries_a_rare_word() -> None:
    rng = np.random.default_rng(0)
    texts = [caption([Design("frog", "flat")], "beach", rng) for _ in range(500)]
    rare = [text for text in texts if set(text.split()) & set(IDENTIFIERS)]
    assert 0.03 < len(rare) / len(texts) < 0.1
    assert all(re.match(r"a photo of \w+ frog ", text) for text in rare)


@pytest.mark.parametrize(("word", "expected"), [("frog", "a frog"), ("apple", "an apple"), ("umbrella", "an umbrella")])
def test_articles(word: str, expected: str) -> None:
    assert with_article(word) == expected


def test_recolouring_changes_the_body_and_keeps_the_eyes() -> None:
    image = DrawnSprites()["frog", "flat"]
    changed = np.asarray(recolored(image, COLORS["purple"]))
    assert np.abs(changed[80, 60, :3].astype(int) - COLORS["purple"]).max() < 12
    assert changed[46, 46, :3].max() < 30
    assert (changed[..., 3] == np.asarray(image)[..., 3]).all()


def test_a_pattern_shows_both_colours() -> None:
    changed = np.asarray(recolored(DrawnSprites()["frog", "flat"], COLORS["red"], "striped", COLORS["white"]))
    body = changed[60:100, 30:90, :3].reshape(-1, 3).astype(int)
    for color in ("red", "white"):
        assert (np.abs(body - COLORS[color]).max(1) < 20).mean() > 0.2


@pytest.mark.parametrize("kind", DECOYS)
def test_a_decoy_keeps_colours_and_loses_the_shape(kind: str) -> None:
    figure = DrawnSprites()["snail", "flat"]
    made = np.asarray(decoy(figure, kind, np.random.default_rng(3)), np.int32)
    whole = np.asarray(figure, np.int32)
    shape, decoyed = whole[..., 3] > 128, made[..., 3] > 128
    assert decoyed.mean() > 0.05
    overlap = (shape & decoyed).sum() / (shape | decoyed).sum()
    same = (np.abs(whole - made).max(-1) < 16)[shape].mean()
    assert overlap < 0.97 or same < 0.97
    color = np.median(whole[shape][:, :3], axis=0)
    solid = made[..., 3] > 60
    assert np.abs(np.median(made[solid][:, :3], axis=0) - color).max() < 60


def test_the_store_holds_the_scenes(scenery: Scenery, tmp_path: Any) -> None:
    made = scene_store.make(tmp_path / "scenes", scenery, 12, lambda share: None)
    again = scene_store.make(tmp_path / "scenes", scenery, 12, lambda share: pytest.fail("drawn twice"))
    assert len(made) == len(again) == 12
    for number in range(12):
        scene = scenery.scene(number)
        assert (made.pixels[number] == np.asarray(scene.image)).all()
        assert tuple(made.facts[number]) == scene_store.facts(scene)
        assert tuple(made.time_ids[number]) == scene.time_ids
    assert made.tokens.shape == (12, 3, 32)
    assert made.tokens.max() < 2**15
