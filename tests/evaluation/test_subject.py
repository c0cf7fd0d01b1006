"""Photos to judge by: read once each, and never ones that were trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.evaluated_models import EvaluatedModel, check_models
from sdxl_ray.evaluation.subject import held_out_photos, load_photos, require_unseen, subject_name, training_images
from sdxl_ray.io.artifact import Artifact, write_manifest
from sdxl_ray.tiny import shipped


def _models(artifact: Artifact) -> list[EvaluatedModel]:
    return [EvaluatedModel("base", Base()), EvaluatedModel("lora", Base(), artifact, "sks dog")]


def test_each_photo_counts_once(held_out: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(held_out, tmp_path / "copy"))
    with Image.open(copy / "0.png") as image:
        image.save(copy / "again.bmp")  # other bytes, the same pixels
    assert len(load_photos(str(copy))) == len(load_photos(str(held_out))) == 3
    with pytest.raises(UserError, match=r"--subject '.*/nowhere' does not exist"):
        load_photos("nowhere")
    assert len(load_photos("subject:robot/held_out")) == 5


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("photos/toby/held_out", "toby"),
        ("photos/toby", "toby"),
        ("subject:robot/held_out", "robot"),
        ("subject:robot", "robot"),
        ("set.parquet", "set"),
    ],
)
def test_what_records_call_a_subject(where: str, name: str) -> None:
    assert subject_name(where) == name


def test_photos_that_were_held_out_pass(artifact: Artifact, held_out: Path) -> None:
    assert require_unseen(load_photos(str(held_out)), _models(artifact)) == []


def test_a_training_photo_is_refused_under_any_name_and_format(
    artifact: Artifact, held_out: Path, photos: Path, tmp_path: Path
) -> None:
    for number, change in enumerate((shutil.copy, lambda a, b: Image.open(a).save(b.with_suffix(".bmp")))):
        folder = Path(shutil.copytree(held_out, tmp_path / str(number)))
        change(photos / "1.png", folder / "new.png")
        with pytest.raises(UserError, match=r"photo 'new\.\w+' is one that 'lora' was trained on"):
            require_unseen(load_photos(str(folder)), _models(artifact))


def test_a_training_photo_is_known_by_its_bytes_where_the_original_is_gone(
    artifact: Artifact, photos: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(artifact.folder.parent, tmp_path / "run"))
    rows = training_images(Artifact.open(run / "artifact"))
    assert rows is not None
    assert len(rows) == 5
    import pyarrow.parquet as pq

    table = pq.read_table(run / "pictures" / "train.parquet")
    gone = table.set_column(1, "source", [[f"elsewhere/{i}.png" for i in range(table.num_rows)]])
    pq.write_table(gone, run / "pictures" / "train.parquet")
    with pytest.raises(UserError, match="trained on"):
        require_unseen(load_photos(str(photos)), _models(Artifact.open(run / "artifact")))


def test_an_artifact_alone_is_checked_by_its_recipe_or_named(artifact: Artifact, held_out: Path, photos: Path) -> None:
    alone = Path(shutil.copytree(artifact.folder, held_out.parents[1] / "alone"))
    moved = Artifact.open(alone)
    with pytest.raises(UserError, match="trained on"):
        require_unseen(load_photos(str(photos)), _models(moved))
    recipe = {**moved.manifest.recipe, "data": {**moved.manifest.recipe["data"], "images": "gone"}}
    lost = write_manifest(
        alone, kind="lora", recipe=recipe, recipe_identity="", base_id="tiny", base_revision=shipped.revision(), step=1
    )
    assert require_unseen(load_photos(str(photos)), _models(lost)) == ["lora"]
    with pytest.raises(UserError, match="give them with --subject"):
        held_out_photos(lost)


def test_models_that_cannot_stand_beside_each_other(artifact: Artifact, tmp_path: Path) -> None:
    check_models(_models(artifact))
    with pytest.raises(UserError, match="two models are called 'base'"):
        check_models([EvaluatedModel("base", Base()), EvaluatedModel("base", Base(), artifact, "sks dog")])
    with pytest.raises(UserError, match="cannot be called 'real'"):
        check_models([EvaluatedModel("real", Base())])
    with pytest.raises(UserError, match="nothing to evaluate"):
        check_models([])
    folder = Path(shutil.copytree(artifact.folder, tmp_path / "foreign"))
    foreign = write_manifest(
        folder, kind="lora", recipe={}, recipe_identity="", base_id="sdxl", base_revision="f" * 40, step=1
    )
    with pytest.raises(UserError, match=r"foreign' was made on base 'sdxl' at f{12}, not on the base at"):
        check_models([*_models(artifact), EvaluatedModel("foreign", Base(), foreign, "sks dog")])
