"""What images and captions say before a run: errors where it cannot be meant, else notes; what ships gives none."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.config.recipe import Recipe, load, override
from sdxl_ray.data.dataset import DatasetImage, ImageSet, Role
from sdxl_ray.errors import UserError
from sdxl_ray.models.base_model_files import locate
from sdxl_ray.training.input_notes import input_notes, require_sound, run_notes, unread_notes
from sdxl_ray.training.run_directory import scan_images
from sdxl_ray.training.trainer import Splits
from tests.conftest import Here
from tests.running import draw_images


def image(
    number: int, caption: str = "a photo of sks dog", size: tuple[int, int] = (512, 512), role: Role = "instance"
) -> DatasetImage:
    return DatasetImage(hashlib.sha256(str(number).encode()).hexdigest(), f"set/{number}.png", caption, *size, role)


def images(
    *train: DatasetImage, held_out: tuple[DatasetImage, ...] = (), given: tuple[DatasetImage, ...] = ()
) -> Splits:
    return Splits(ImageSet(train), ImageSet(held_out), ImageSet(given))


def notes(found: Splits, **settings: Any) -> list[str]:
    plain = {"data.subject": "sks dog", "optim.batch_size": 1}
    changes = {name.replace("__", "."): value for name, value in settings.items()}
    return input_notes(override(Recipe(), {**plain, **changes}), found, 512)


def test_ordinary_images_give_no_note() -> None:
    assert notes(images(image(0), image(1, "SKS  dog, on grass"))) == []
    assert notes(images(image(0, "a dog"), image(1, "sks dog"))) == []


def test_a_subject_in_no_caption_is_noted_with_one() -> None:
    (note,) = notes(images(image(0, "a dog on grass"), image(1, "sksdog")))
    assert note.startswith("data.subject='sks dog' is in none of the 2 captions (0.png: 'a dog on grass')")
    (note,) = notes(images(image(0, "a dog")), data__subject="sks", data__class_name="dog")
    assert "data.subject='sks' is in none of the 1 captions" in note


def test_a_prompt_that_no_image_has_is_noted() -> None:
    found = images(image(0, "sks dog on grass"))
    (note,) = notes(found, data__prompt="an image of sks dog")
    assert note.startswith("data.prompt='an image of sks dog' is the caption of no image")
    assert notes(images(image(0, "an image of sks dog")), data__prompt="an image of sks dog") == []


@pytest.mark.parametrize(
    "caption",
    [
        "[trigger] on grass",
        "a [Filewords]",
        "{} dog",
        "photo of {trigger}",
        "<token> dog",
        "<lora:x:1> dog",
        "__animal__",
    ],
)
def test_placeholders_of_other_trainers_are_refused(caption: str) -> None:
    recipe = override(Recipe(), {"data.subject": "sks dog"})
    found = images(image(0, "sks dog"), image(1, caption), held_out=(image(2, caption),))
    with pytest.raises(
        UserError, match=r"the caption of '1.png' .*as in 1 more, which nothing replaces: write 'sks dog'"
    ):
        require_sound(recipe, found)


def test_brackets_of_ones_own_are_no_placeholders() -> None:
    found = images(image(0, "[V] dog, [red] {a|b} 1 < 2 > 0"))
    require_sound(override(Recipe(), {"data.subject": "[V] dog"}), found)
    with pytest.raises(UserError, match="placeholder"):  # one of another trainer's beside them is still found
        require_sound(override(Recipe(), {"data.subject": "[V] dog"}), images(image(0, "[V] dog, [trigger]")))


def test_class_images_are_not_the_subjects(tmp_path: Path) -> None:
    folder = draw_images(tmp_path / "dog", [(64, 64)] * 3, 0)
    others = draw_images(tmp_path / "class", [(64, 64)] * 2, 1)
    copy = others / "copy.png"
    copy.write_bytes((folder / "1.png").read_bytes())
    changes = {"data.images": str(folder), "data.subject": "sks dog", "data.class_name": "dog"}
    recipe = override(Recipe(), {**changes, "data.prior": {"images": str(others)}})
    with pytest.raises(UserError, match=r"class image 'copy.png' is the subject's own photo '.*1.png': give other"):
        scan_images(recipe)
    copy.unlink()
    scan_images(recipe)
    spelled = f"{folder.parent}/class/../dog"
    with pytest.raises(UserError, match=r"data.prior.images = .* is data.images too"):
        scan_images(override(recipe, {"data.prior.images": spelled}))


def test_a_batch_above_the_set_is_noted() -> None:
    (note,) = notes(images(image(0), image(1)), optim__batch_size=4)
    assert note == "optim.batch_size=4 is more than the 2 training images: a step sees some of them twice"


def test_extreme_crops_and_enlargements_are_listed_worst_first() -> None:
    extremes = [
        image(0, size=(2000, 100)),
        image(1, size=(300, 3000)),
        image(2, size=(9, 9)),
        image(3, size=(200, 200)),
    ]
    cut, enlarged = notes(images(*extremes, image(4)), data__buckets=False)
    assert cut == (
        "2 of 5 images lose more than half of their area to the crop: 0.png (2000 x 100, 5% kept), 1.png (300 x 3000, "
        "10% kept)"
    )
    assert enlarged == (
        "3 of 5 images are enlarged more than 2 times to 512 px: 2.png (9 x 9, 56.9 times), 0.png (2000 x 100, 5.12 "
        "times), 3.png (200 x 200, 2.56 times)"
    )
    many = [image(n, size=(20 + n, 20 + n)) for n in range(6)]
    (few,) = notes(images(*many[:4], held_out=(many[4],), given=(many[5],)))
    assert few.startswith("6 of 6 images are enlarged")
    assert few.endswith("and 3 more")
    # With buckets a 2000 x 100 panorama keeps a little more; a photo of 3:2 loses next to nothing.
    (cut, _) = notes(images(extremes[0], image(5, size=(3000, 2000))))
    assert cut.startswith("1 of 2 images lose")
    assert "8% kept" in cut


def test_folders_that_other_settings_read_are_not_left_out(tmp_path: Path) -> None:
    folder = draw_images(tmp_path / "dog", [(64, 64)] * 3, 0)
    draw_images(folder / "held_out", [(64, 64)] * 2, 1)
    recipe = override(load("tiny_lora"), {"data.images": str(folder), "data.subject": "sks dog"})
    (note,) = unread_notes(recipe)
    assert "2 images in folders below it not read (held_out/0.png)" in note
    assert unread_notes(override(recipe, {"data.validation": str(folder / "held_out")})) == []
    subject = override(recipe, {"data.images": "subject:robot", "data.recursive": True})
    assert unread_notes(subject) == ["data.recursive=true is not used: no source is a folder of your own"]


@pytest.mark.parametrize("name", ["tiny_lora", "tiny_dreambooth", "tiny_dreambooth_lora"])
def test_a_shipped_subject_gives_no_note(name: str) -> None:
    changes = {"data.images": "subject:penguin", "data.subject": "sks penguin", "data.class_name": "penguin"}
    recipe = override(load(name), {**changes, "data.validation": "subject:penguin/held_out"})
    assert run_notes(recipe, scan_images(recipe), locate(recipe.base)) == []


def test_plan_prints_them_once(here: Here, tmp_path: Path) -> None:
    folder = draw_images(tmp_path / "dog", [(64, 64)] * 3, 0)
    (folder / "9.txt").write_text("nobody")
    words = ("plan", "tiny_lora", "data.images=dog", "data.subject=sks dog", "checkpoint.every=900", "--gpu", "cpu")
    code, out, err = here(*words)
    assert code == 0
    assert "note" not in out
    assert [line for line in err.splitlines() if line.startswith("note: ")] == [
        "note: checkpoint.every=900 is beyond the last step (300): a run that is killed begins again",
        f"note: data.images '{folder}': 1 caption file without an image (9.txt)",
    ]
