"""Recipes: what a person writes is what runs, and a slip of the pen is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavamed import recipe
from llavamed.errors import InputError


@pytest.mark.parametrize("name", recipe.shipped())
def test_every_shipped_recipe_validates_and_names_itself(name: str) -> None:
    assert recipe.load(name).name == name


def test_the_recipes_of_the_issue_are_shipped() -> None:
    assert {"tiny", "llava-med-v1.0", "llava-med-v1.5"} <= set(recipe.shipped())


def test_v1_0_is_stated_as_its_difference_from_v1_5() -> None:
    old, new = recipe.load("llava-med-v1.0"), recipe.load("llava-med-v1.5")
    assert (old.model.projector_layers, new.model.projector_layers) == (1, 2)
    assert (old.model.image_wrap, new.model.image_wrap) == (True, False)
    assert old.train == new.train


def test_the_curriculum_is_the_papers() -> None:
    train = recipe.load("llava-med-v1.5").train
    assert train.align is not None
    assert train.instruct is not None
    assert (train.align.trains, train.align.learning_rate, train.align.epochs) == (("projector",), 2e-3, 1)
    assert (train.instruct.learning_rate, train.instruct.epochs, train.instruct.batch_size) == (2e-5, 3, 128)


def test_a_misspelt_key_names_the_nearest_valid_one() -> None:
    with pytest.raises(
        InputError, match=r"train\.instruct\.learning_rte.*did you mean 'train\.instruct\.learning_rate'"
    ):
        recipe.load("tiny", ["train.instruct.learning_rte=1e-5"])


def test_a_misspelt_recipe_names_the_nearest_shipped_one() -> None:
    with pytest.raises(InputError, match=r"did you mean 'llava-med-v1\.5'"):
        recipe.load("llava-med-1.5")


def test_set_reads_scientific_notation_as_a_number() -> None:
    settings = recipe.load("tiny", ["train.instruct.learning_rate=1e-5"])
    assert settings.train.instruct is not None
    assert settings.train.instruct.learning_rate == 1e-5


def test_set_without_equals_says_how_to_write_it() -> None:
    with pytest.raises(InputError, match="key=value"):
        recipe.load("tiny", ["train.instruct.epochs"])


def test_a_file_extends_a_shipped_recipe_and_another_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: tiny\nseed: 7\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\ntrain: {instruct: {epochs: 5}}\n")
    settings = recipe.load(str(tmp_path / "mine.yaml"))
    assert settings.seed == 7
    assert settings.train.instruct is not None
    assert (settings.train.instruct.epochs, settings.train.instruct.batch_size) == (5, 16)


def test_a_recipe_that_extends_itself_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(InputError, match="extends itself"):
        recipe.load(str(path))


def test_a_circle_of_recipes_is_found_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    path = tmp_path / "r" / "a.yaml"
    path.write_text("extends: ../r/a.yaml\n")
    with pytest.raises(InputError, match="extends itself"):
        recipe.load(str(path))


def test_a_recipe_in_another_encoding_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("name: ä\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        recipe.load(str(path))


@pytest.mark.parametrize("change", ["train.align.epochs=.inf", "train.align.trains=[]", "demo.articles=-5"])
def test_numbers_out_of_range_are_told(change: str) -> None:
    with pytest.raises(InputError, match=change.split("=")[0].replace(".", r"\.")):
        recipe.load("tiny", [change])


def test_a_recipe_survives_its_own_yaml(tmp_path: Path) -> None:
    settings = recipe.load("llava-med-v1.0")
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(settings))
    assert recipe.load(str(tmp_path / "again.yaml")) == settings


def test_a_wrong_value_names_its_key() -> None:
    with pytest.raises(InputError, match=r"train\.align\.epochs"):
        recipe.load("tiny", ["train.align.epochs=-1"])


def test_changed_replaces_dotted_keys_and_validates() -> None:
    settings = recipe.changed(recipe.load("tiny"), {"train.align.data": "x.jsonl"})
    assert settings.train.align is not None
    assert settings.train.align.data == "x.jsonl"


def test_what_is_written_down_holds_no_password() -> None:
    secret = ["https://me:s3cret@a.org/v1?key=s3cret", "https://s3cret@b.org/v1", "s3://me:s3cret@bucket/articles"]
    keys = ("instruct.teacher", "instruct.judge", "corpus.articles")
    settings = recipe.changed(recipe.load("tiny"), dict(zip(keys, secret, strict=True)))
    written = recipe.to_yaml(settings)
    assert "s3cret" not in written
    assert all(address in written for address in ("https://a.org/v1\n", "https://b.org/v1\n", "s3://bucket/articles\n"))
    assert settings.instruct.teacher == secret[0]
