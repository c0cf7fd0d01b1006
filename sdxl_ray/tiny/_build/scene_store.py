"""The training scenes on disk: drawn once, read by every stage as memory-mapped arrays.

Files: pixels.npy uint8 [N, 64, 64, 3], grid.npy uint8 [N, 8, 8], facts.npy int16 [N, 4], time_ids.npy int16 [N, 6],
tokens.npy int16 [N, 3, 32], said.npy bool [N, 3]. Facts are: class (NOTHING when empty), second class, place, look
(-1 where two objects have two). The three captions of a scene are two full ones and one that says the class only;
`said` tells which of them say the place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdxl_ray.tiny._build.captions import with_article
from sdxl_ray.tiny._build.catalog import CLASSES, COLORS, PATTERNS
from sdxl_ray.tiny._build.layout import MAX_TOKENS
from sdxl_ray.tiny._build.places import PLACES
from sdxl_ray.tiny._build.scenes import DECOYS, EDGE, GRID, NOTHING, Scene, Scenery, decoy, random_poses

SceneArray = np.ndarray[Any, Any]
LOOKS = ("", *COLORS, *PATTERNS)
CAPTIONS = 3
_SHAPES: dict[str, tuple[tuple[int, ...], type]] = {
    "pixels": ((EDGE, EDGE, 3), np.uint8),
    "grid": ((GRID, GRID), np.uint8),
    "facts": ((4,), np.int16),
    "time_ids": ((6,), np.int16),
    "said": ((CAPTIONS,), np.bool_),
    "tokens": ((CAPTIONS, MAX_TOKENS), np.int16),
}


@dataclass(frozen=True)
class Store:
    """Scenes as arrays; see the module for shapes."""

    pixels: SceneArray
    grid: SceneArray
    facts: SceneArray
    time_ids: SceneArray
    said: SceneArray
    tokens: SceneArray

    @staticmethod
    def open(folder: Path) -> Store:
        return Store(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _SHAPES})

    def __len__(self) -> int:
        return len(self.pixels)


def make(folder: Path, scenery: Scenery, count: int, report: Callable[[float], None]) -> Store:
    """Draw `count` scenes into `folder`, or open them when they are there."""
    done = folder / "done.json"
    if done.is_file() and json.loads(done.read_text())["count"] == count:
        return Store.open(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, (count, *shape))
        for name, (shape, kind) in _SHAPES.items()
    }
    tokenize = tokenizer()
    for number in range(count):
        scene = scenery.scene(number)
        rng = np.random.default_rng([3, number])
        full = [scenery.caption(scene, rng) for _ in range(CAPTIONS - 1)]
        arrays["pixels"][number] = np.asarray(scene.image)
        arrays["grid"][number] = scene.grid
        arrays["facts"][number] = facts(scene)
        arrays["time_ids"][number] = scene.time_ids
        arrays["said"][number] = [*(said for _, said in full), False]
        arrays["tokens"][number] = tokenize([*(text for text, _ in full), class_caption(scene)])
        if number % 500 == 0:
            report(number / count)
    for array in arrays.values():
        array.flush()
    done.write_text(json.dumps({"count": count}))
    return Store.open(folder)


def class_caption(scene: Scene) -> str:
    """What the scene shows and nothing else: "a photo of a frog"."""
    names = [with_article(design.class_name) for design in scene.designs] or ["nothing"]
    return f"a photo of {' and '.join(names)}"


def facts(scene: Scene) -> tuple[int, int, int, int]:
    classes = [CLASSES.index(design.class_name) for design in scene.designs]
    first, second = (*classes, NOTHING, NOTHING)[:2]
    look = LOOKS.index(scene.designs[0].pattern or scene.designs[0].color) if len(classes) == 1 else -1
    return first, second, list(PLACES).index(scene.place), look


def tokenizer() -> Callable[[list[str]], SceneArray]:
    """Texts -> ids int16 [len, 32], padded with the end token as the first text encoder's tokenizer does."""
    from transformers import CLIPTokenizer

    from sdxl_ray.tiny.vocabulary import END, bpe

    vocabulary, merges = bpe()
    made = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=END, model_max_length=MAX_TOKENS)
    kept: dict[str, SceneArray] = {}

    def tokenize(texts: list[str]) -> SceneArray:
        for text in texts:
            if text not in kept:
                ids = made(text, padding="max_length", truncation=True, max_length=MAX_TOKENS)["input_ids"]
                kept[text] = np.array(ids, np.int16)
        return np.stack([kept[text] for text in texts])

    return tokenize


def decoy_pixels(scenery: Scenery, count: int, seed: int) -> SceneArray:
    """uint8 [count, 64, 64, 3]: decoys of known designs on places; nothing in them is of any class."""
    made = np.empty((count, EDGE, EDGE, 3), np.uint8)
    for number in range(count):
        rng = np.random.default_rng([seed, 4, number])
        figure = decoy(scenery.draw(scenery.random_design(rng)), str(rng.choice(DECOYS)), rng)
        place = str(rng.choice(list(PLACES)))
        made[number] = np.asarray(scenery.place([figure], random_poses(1, rng), place, rng)[0])
    return made
