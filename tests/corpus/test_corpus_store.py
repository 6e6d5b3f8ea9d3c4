"""Shards and index: what is written is what is read, by us and by the WebDataset library."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llavamed.corpus import store
from llavamed.corpus.store import Corpus, CorpusWriter, as_stored, make_key, open_images
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.records import Mention, Pair


def encoded(kind: str, size: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (size, 0, 0)).save(out, kind)
    return out.getvalue()


def pair(number: int, extension: str = "png") -> Pair:
    return Pair(
        key=f"a_f{number}",
        file=f"a_f{number}.{extension}",
        caption=f"Légende {number}.",
        mentions=(Mention("One.", "One. Two.", "Results", "AB"), Mention("Three.")) if number % 2 else (),
        width=8,
        domain_score=0.25,
        is_plot=True,
    )


def written(folder: Path, count: int = 3) -> list[tuple[Pair, bytes]]:
    folder.mkdir(parents=True)
    rows = [(pair(n), encoded("PNG", n + 1)) for n in range(count)]
    with CorpusWriter(folder) as writer:
        for row in rows:
            writer.add(*row)
    Manifest("corpus").write(folder)
    return rows


def test_pairs_and_images_come_back_as_they_went(tmp_path: Path) -> None:
    rows = written(tmp_path / "c", 5)
    corpus = Corpus(tmp_path / "c")
    assert len(corpus) == 5
    assert list(corpus.pairs()) == [p for p, _ in rows]
    assert [corpus.image(p.key) for p, _ in rows] == [data for _, data in rows]
    assert len(corpus.fingerprint) == 16


def test_shards_split_by_count_and_every_offset_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAIRS_PER_SHARD", 2)
    rows = written(tmp_path / "c", 5)
    assert len(list((tmp_path / "c").glob("shard-*.tar"))) == 3
    corpus = Corpus(tmp_path / "c")
    assert [p.key for p in corpus.pairs()] == [p.key for p, _ in rows]
    assert [corpus.image(p.key) for p, _ in rows] == [data for _, data in rows]


def test_the_webdataset_library_reads_the_shards(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    rows = written(tmp_path / "c")
    samples = list(wds.WebDataset(str(tmp_path / "c/shard-000000.tar"), shardshuffle=False).decode("pil"))
    assert [s["__key__"] for s in samples] == [p.key for p, _ in rows]
    for sample, (expected, data) in zip(samples, rows, strict=True):
        assert sample["txt"] == expected.caption
        assert sample["png"].size == Image.open(io.BytesIO(data)).size
        assert Pair.from_json(sample["json"]) == expected


def test_the_index_is_queryable_and_agrees_with_tarfile(tmp_path: Path) -> None:
    rows = written(tmp_path / "c")
    table = pq.read_table(tmp_path / "c/index.parquet").to_pylist()
    with tarfile.open(tmp_path / "c/shard-000000.tar") as tar:
        members = {m.name: m for m in tar.getmembers()}
    assert [(r["offset"], r["size"]) for r in table] == [
        (members[p.file].offset_data, members[p.file].size) for p, _ in rows
    ]
    assert table[1]["mentions"][0] == {
        "sentence": "One.",
        "paragraph": "One. Two.",
        "section": "Results",
        "panels": "AB",
    }
    assert all((m.mtime, m.uid, m.gid, m.mode) == (0, 0, 0, 0o644) for m in members.values())


def test_an_empty_corpus_is_a_corpus(tmp_path: Path) -> None:
    written(tmp_path / "c", 0)
    assert len(Corpus(tmp_path / "c")) == 0
    assert list(Corpus(tmp_path / "c").pairs()) == []


def test_keys_are_safe_unique_and_short() -> None:
    taken: set[str] = set()
    keys = [
        make_key("PMC7.1", "f1", taken),
        make_key("PMC7.1", "f1", taken),
        make_key("10.1371/journal.pone.0070598", "../g 001", taken),
        make_key("é", "日本", taken),
        make_key("x" * 300, "f1", taken),
        make_key("x" * 300, "f2", taken),
    ]
    assert keys[:4] == ["PMC7-1_f1", "PMC7-1_f1-2", "10-1371-journal-pone-0070598_g-001", "x_x"]
    assert len(set(keys)) == len(keys)
    assert all(len(key) <= 84 and key.replace("-", "").replace("_", "").isalnum() for key in keys)


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif")])
def test_published_bytes_are_kept(kind: str, extension: str) -> None:
    data = encoded(kind)
    assert as_stored(data, Image.new("RGB", (8, 8))) == (extension, data)


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_other_formats_become_png_with_the_same_pixels(kind: str) -> None:
    image = Image.open(io.BytesIO(encoded(kind))).convert("RGB")
    extension, data = as_stored(encoded(kind), image)
    assert extension == "png"
    assert Image.open(io.BytesIO(data)).tobytes() == image.tobytes()


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    written(tmp_path / "c")
    with pytest.raises(InputError, match="'nobody'"):
        Corpus(tmp_path / "c").image("nobody")


def test_an_unfinished_folder_is_no_corpus(tmp_path: Path) -> None:
    written(tmp_path / "c")
    (tmp_path / "c/manifest.json").unlink()
    with pytest.raises(InputError, match="corpus build"):
        open_images(tmp_path / "c")


def test_an_index_with_a_key_that_is_not_utf_8_says_so(tmp_path: Path) -> None:
    written(tmp_path / "c")
    table = pq.read_table(tmp_path / "c" / "index.parquet")
    spoilt = pa.array([b"\xff"] * len(table), pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index("key"), "key", spoilt), tmp_path / "c" / "index.parquet")
    with pytest.raises(InputError, match=r"index.parquet: cannot be read \(.*build the corpus again"):
        Corpus(tmp_path / "c")


def test_a_damaged_shard_says_so(tmp_path: Path) -> None:
    written(tmp_path / "c")
    (tmp_path / "c/shard-000000.tar").write_bytes(b"short")
    with pytest.raises(InputError, match="build the corpus again"):
        Corpus(tmp_path / "c").image("a_f0")
    (tmp_path / "c/index.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"index\.parquet: cannot be read"):
        Corpus(tmp_path / "c")


def test_images_of_a_corpus_by_key_and_of_a_folder_by_path(tmp_path: Path) -> None:
    rows = written(tmp_path / "c")
    assert open_images(tmp_path / "c")("a_f1") == rows[1][1]
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "d/sub/x.png").write_bytes(b"bytes")
    assert open_images(tmp_path / "d")("sub/x.png") == b"bytes"


@pytest.mark.parametrize("key", ["../secret.png", "/etc/hostname", "sub/../../secret.png", "link.png"])
def test_images_outside_the_folder_are_out_of_reach(tmp_path: Path, key: str) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "d/link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputError, match="leads out"):
        open_images(tmp_path / "d")(key)


@pytest.mark.parametrize("key", ["absent.png", "", "nul\0.png"])
def test_a_missing_image_is_an_input_error(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError):
        open_images(tmp_path)(key)
