"""Indexes of folders: made once while they are in use, and not kept."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import pytest

from llavamed.corpus import neighbours
from llavamed.corpus.neighbours import neighbourhoods


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first file of each folder that an index is made of."""
    names: list[str] = []
    real = neighbours.by_stem

    def by_stem(files: Iterable[str]) -> dict[str, list[str]]:
        files = list(files)
        names.append(files[0])
        return real(files)

    monkeypatch.setattr(neighbours, "by_stem", by_stem)
    neighbours._in_use.cache_clear()
    return names


def test_a_neighbourhood_of_many_folders_is_indexed_once(made: list[str]) -> None:
    near = neighbourhoods(["a.xml", *(f"{n:04d}/f{n}.jpg" for n in range(1_000))])["."]
    for _ in range(3):
        assert near.image("f999.tif") == "0999/f999.jpg"
        assert near.image("nothing.tif") is None
        near = pickle.loads(pickle.dumps(near))
    assert len(made) == 1_001


def test_only_the_folders_that_are_looked_into_are_indexed(made: list[str]) -> None:
    near = neighbourhoods(["a.xml", "a.json", "f.jpg", "below/g.jpg"])["."]
    assert (near.beside("a.xml", ".json"), near.image("f")) == ("a.json", "f.jpg")
    assert made == ["a.xml"]


def test_of_one_neighbourhood_the_indexes_are_kept_and_no_other(made: list[str]) -> None:
    near = neighbourhoods(["a/a.xml", "a/f.jpg", "b/b.xml", "b/f.jpg"])
    assert [near[folder].image("f") for folder in "aaba"] == ["a/f.jpg", "a/f.jpg", "b/f.jpg", "a/f.jpg"]
    assert made == ["a/a.xml", "b/b.xml", "a/a.xml"]
