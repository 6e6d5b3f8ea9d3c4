"""Both formats of a shard, read by the libraries they are meant for and by key."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llavamed.corpus import card, shards
from llavamed.corpus.shards import FORMATS, SUFFIXES, copy_without, read
from llavamed.corpus.store import Corpus, CorpusWriter
from llavamed.manifest import Manifest
from llavamed.records import Mention, Pair

KINDS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "webp": "WEBP"}


def encoded(kind: str, seed: int) -> bytes:
    out = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (40, 30 + seed % 7, 3), dtype=np.uint8)
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


@lru_cache
def rows(count: int) -> list[tuple[Pair, bytes]]:
    """Pairs of every kind of image; the first five are uncited, some images occur twice."""
    found = []
    for n in range(count):
        extension = list(KINDS)[n % 4] if n else "jpg"
        mentions = (Mention(f"See {n}.", f"See {n}. More.", "Results", "AB"),) if n > 4 else ()
        pair = Pair(f"k{n}", f"k{n}.{extension}", f"Légende {n}.", mentions=mentions, licence="CC0", domain_score=0.5)
        found.append((pair, encoded(KINDS[extension], n // 2 * 2)))
    return found


def corpus(folder: Path, fmt: Any, count: int = 130) -> list[tuple[Pair, bytes]]:
    folder.mkdir()
    with CorpusWriter(folder, fmt=fmt) as writer:
        for row in rows(count):
            writer.add(*row)
    card.write(folder, fmt)
    Manifest("corpus").write(folder)
    return rows(count)


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_image_is_one_seek_away_and_equal_pairs_are_equal_bytes(tmp_path: Path, fmt: str) -> None:
    written = corpus(tmp_path / "c", fmt)
    found = Corpus(tmp_path / "c")
    assert [found.image(pair.key) for pair, _ in written] == [data for _, data in written]
    assert list(found.pairs()) == [pair for pair, _ in written]
    shard = tmp_path / f"c/shard-000000{SUFFIXES[fmt]}"
    assert list(read(shard)) == written
    corpus(tmp_path / "again", fmt)
    assert shard.read_bytes() == (tmp_path / "again" / shard.name).read_bytes()


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_shard_without_some_pairs_is_the_shard_of_the_others(tmp_path: Path, fmt: str) -> None:
    shard = FORMATS[fmt](tmp_path / f"a{SUFFIXES[fmt]}")
    for row in rows(120):
        shard.add(*row)
    shard.close()
    gone = {f"k{n}" for n in range(0, 120, 7)}
    places = copy_without(tmp_path / f"a{SUFFIXES[fmt]}", gone, tmp_path / f"b{SUFFIXES[fmt]}")
    straight = FORMATS[fmt](tmp_path / f"c{SUFFIXES[fmt]}")
    for pair, data in rows(120):
        if pair.key not in gone:
            straight.add(pair, data)
    assert places == straight.close()
    assert (tmp_path / f"b{SUFFIXES[fmt]}").read_bytes() == (tmp_path / f"c{SUFFIXES[fmt]}").read_bytes()
    assert copy_without(tmp_path / f"b{SUFFIXES[fmt]}", set(places), tmp_path / "none") == {}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("fmt", FORMATS)
def test_the_datasets_library_loads_the_folder(tmp_path: Path, fmt: str, streaming: bool) -> None:
    datasets = pytest.importorskip("datasets")
    written = corpus(tmp_path / "c", fmt)
    data = datasets.load_dataset(
        str(tmp_path / "c"), split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    count = 0
    for row, (pair, image) in zip(data, written, strict=True):
        shown = row["image"] if fmt == "hf" else row[pair.file.rpartition(".")[2]]
        assert shown.size == Image.open(io.BytesIO(image)).size
        record = dict(row) if fmt == "hf" else row["json"]
        assert Pair.from_json(record) == pair
        count += 1
    assert count == 130


def test_the_datasets_library_loads_the_files_by_their_format(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    written = corpus(tmp_path / "hf", "hf", 8)
    files = str(tmp_path / "hf/shard-*.parquet")
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(data.features["image"], datasets.Image)
    assert [row["caption"] for row in data] == [pair.caption for pair, _ in written]
    (tmp_path / "wds").mkdir()
    with CorpusWriter(tmp_path / "wds") as writer:
        for pair, image in (row for row in rows(60) if row[0].file.endswith("png") and row[0].mentions):
            writer.add(pair, image)
    files = str(tmp_path / "wds/shard-*.tar")
    data = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(data.features["png"], datasets.Image)
    assert len(data) == writer.count


def test_the_card_has_a_column_for_every_field() -> None:
    assert {name for name, _ in shards.FIELDS} | {"key"} == Pair("k", "f", "c").to_json().keys()
