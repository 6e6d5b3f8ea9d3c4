"""A corpus on disk: shards, and one Parquet index that knows where each image lies in them.

    shard-NUMBER.tar, or .parquet    the pairs with their images, in a format that others read (`shards`)
    index.parquet                    key, shard, offset, size, and every field of the Pair as a column

The shards are for reading in a row; the index gives random access by one `seek`, and can be asked questions by DuckDB,
polars or pandas without opening a shard. A picture keeps the bytes it was published with if browsers can show them;
TIFF and BMP become PNG.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from llavamed import manifest
from llavamed.corpus import duplicates
from llavamed.corpus.columns import Column
from llavamed.corpus.output import Output
from llavamed.corpus.places import SCHEMA as PLACE
from llavamed.corpus.places import Places
from llavamed.corpus.shards import FIELDS, FORMATS, SUFFIXES, Shard
from llavamed.errors import InputError
from llavamed.imaging import lookalike
from llavamed.records import Pair

INDEX = "index.parquet"
WITHOUT_IMAGE = "without_image.jsonl"  # the pairs whose image was missing
PAIRS_PER_SHARD = 1000
TEXT_PER_SHARD = 32_000_000  # characters; a thousand pairs have three million. Their rows are held until it ends
_ROWS_READ = 100  # at once: as Python's objects, a row takes many times what it takes in the file
HINT = "`llavamed corpus build ARTICLES --out FOLDER` makes one"
_KEY_LENGTH = 80  # a tar header holds names of 100 bytes

# First bytes of the formats that are kept as they are.
_KEPT = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF87a", "gif"), (b"GIF89a", "gif"))

GROUPS = ("image_group", "caption_group")  # "" for a pair that is alone
_SCHEMA = pa.schema([*PLACE, *FIELDS, *((name, pa.string()) for name in GROUPS)])
MINHASH, LOOK = "minhash", "look"  # by which the groups are found: of the caption, and of the picture
_LOOK_BYTES = lookalike.MINIATURE**2
_DIGEST_BYTES = 16  # of a sha256; among 10^12 pictures two different ones would agree in them once in 10^14 times
_UNIT_SCHEMA = pa.schema([*PLACE, *FIELDS, (MINHASH, pa.list_(pa.uint32())), (LOOK, pa.binary(_LOOK_BYTES))])


def make_key(article: str, figure: str, taken: set[str]) -> str:
    """A key unique among `taken` (and added to it), of letters, digits, `_` and `-` alone: WebDataset ends
    a key at the first dot."""
    plain = "_".join(re.sub(r"[^A-Za-z0-9_-]+", "-", part).strip("-") or "x" for part in (article, figure))
    if len(plain) > _KEY_LENGTH:
        plain = f"{plain[: _KEY_LENGTH - 11]}-{hashlib.sha256(plain.encode()).hexdigest()[:10]}"
    key, count = plain, 1
    while key in taken:
        count += 1
        key = f"{plain}-{count}"
    taken.add(key)
    return key


def as_stored(data: bytes, image: Image.Image | None) -> tuple[str, bytes]:
    """(extension, bytes) of a picture in a shard: the bytes it came with, or PNG made from the decoded `image`, which
    is needed for formats that browsers do not show."""
    for magic, extension in _KEPT:
        if data.startswith(magic):
            return extension, data
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp", data
    assert image is not None, "only a JPEG is not decoded, and it is kept"
    out = io.BytesIO()
    image.save(out, format="PNG")
    return "png", out.getvalue()


def cropped(image: Image.Image, box: tuple[int, int, int, int], file: str) -> tuple[str, bytes]:
    """(extension, bytes) of a part of a decoded picture: JPEG if `file` is one, else PNG."""
    out = io.BytesIO()
    is_jpeg = file.endswith(".jpg")
    image.crop(box).save(out, **({"format": "JPEG", "quality": 95} if is_jpeg else {"format": "PNG"}))
    return "jpg" if is_jpeg else "png", out.getvalue()


class CorpusWriter:
    """Writes pairs in the order they come. A context manager; the index is whole when it is left without error.

    `unit` names the shards; with `groups` the index also has what groups are found by. The folder is a corpus only
    once its manifest is written, which is the caller's last step.
    """

    def __init__(
        self, folder: Path, unit: str = "000000", groups: bool = False, fmt: Literal["webdataset", "hf"] = "webdataset"
    ) -> None:
        self.folder = folder
        self.count = 0
        self.shards: list[Path] = []
        self.places: dict[str, tuple[str, int, int]] = {}  # key -> shard, offset, size; of finished shards
        self._unit, self._format = unit, fmt
        self._shard: Shard | None = None
        self._in_shard = self._text = 0  # pairs, and characters of them
        self._rows: list[dict[str, Any]] = []
        self._schema = _UNIT_SCHEMA if groups else _SCHEMA
        self._index = pq.ParquetWriter(folder / INDEX, self._schema, compression="zstd")

    def add(self, pair: Pair, data: bytes, caption: np.ndarray | None = None, look: np.ndarray | None = None) -> None:
        """`data` are the bytes of the member `pair.file`, `caption` its caption's MinHash, `look` its miniature."""
        if self._shard is None or self._in_shard == PAIRS_PER_SHARD or self._text > TEXT_PER_SHARD:
            self._next_shard()
        assert self._shard is not None
        assert pair.file.partition(".")[0] == pair.key, f"{pair.file} is not a member for {pair.key}"
        self._shard.add(pair, data)
        found = {MINHASH: None if caption is None else caption.tolist(), LOOK: None if look is None else look.tobytes()}
        self._rows.append({**pair.to_json(), **found})
        self.count += 1
        self._in_shard += 1
        self._text += pair.text_length

    def _next_shard(self) -> None:
        self._close_shard()
        self._in_shard = self._text = 0
        more = f"-{len(self.shards):03d}" if self.shards else ""
        self.shards.append(self.folder / f"shard-{self._unit}{more}{SUFFIXES[self._format]}")
        self._shard = FORMATS[self._format](self.shards[-1])

    def _close_shard(self) -> None:
        if self._shard is None:
            return
        shard, name = self._shard, self.shards[-1].name
        self._shard = None
        self.places |= {key: (name, *place) for key, place in shard.close().items()}
        names = self._schema.names
        for row in self._rows:
            row |= dict(zip(("shard", "offset", "size"), self.places[row["key"]], strict=True))
        rows = [{name: row[name] for name in names if name in row} for row in self._rows]
        self._index.write_table(pa.Table.from_pylist(rows, self._schema))
        self._rows = []

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_shard()
        self._index.close()


def _table(part: bytes, columns: list[str] | None = None) -> pa.Table:
    pa.default_memory_pool().release_unused()  # of the part before: there may be tens of thousands
    return pq.ParquetFile(pa.BufferReader(part)).read(columns=columns, use_threads=False)


def read_keys(part: bytes) -> list[str]:
    """The keys in a unit's index."""
    found: list[str] = _table(part, ["key"])["key"].to_pylist()
    return found


def merge_indexes(parts: Iterable[Callable[[], bytes]], out: Path) -> dict[str, int]:
    """Join the units' indexes into one, with the groups of pairs that say the same; returns how many there are.

    Two passes: the first finds the groups, the second copies the rows. A group's name is the key of its first pair,
    which is met before the others.
    """
    parts = list(parts)
    groups = _groups(parts, out.parent)
    names: list[dict[int, str]] = [{}, {}]  # of the groups so far
    start = 0
    with pq.ParquetWriter(out, _SCHEMA, compression="zstd") as writer:
        for part in parts:
            table = _table(part()).drop_columns([MINHASH, LOOK])
            keys = table["key"]
            for column, known, found in zip(GROUPS, names, groups, strict=True):
                own = found[start : start + len(table)]
                known |= {int(g): keys[int(g) - start].as_py() for g in own[own == np.arange(len(own)) + start]}
                table = table.append_column(column, pa.array([known.get(int(g), "") for g in own], pa.string()))
            writer.write_table(table.cast(_SCHEMA))
            start += len(table)
    return {column: len(known) for column, known in zip(GROUPS, names, strict=True)}


def _groups(parts: Iterable[Callable[[], bytes]], place: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of the images and of the captions, see `duplicates`. What they are found by stands on disk meanwhile: a few
    numbers a pair in memory are much, where there are ten million pairs."""
    with tempfile.TemporaryDirectory(dir=place) as folder, ExitStack() as files:

        def column(name: str, kind: Any, width: int) -> Column:
            return files.enter_context(closing(Column(Path(folder) / name, kind, width)))

        digests, hashes = column("digests", np.uint8, _DIGEST_BYTES), column("hashes", np.uint64, 1)
        looks, minima = column("looks", np.uint8, _LOOK_BYTES), column("minima", np.uint32, duplicates.MINIMA)
        long = column("long", np.bool_, 1)
        for part in parts:
            table = _table(part(), ["sha256", "phash", MINHASH, LOOK])
            sha256 = np.frombuffer(bytes.fromhex("".join(table["sha256"].to_pylist())), np.uint8).reshape(-1, 32)
            digests.append(sha256[:, :_DIGEST_BYTES])
            hashes.append(np.array([[int(h, 16)] for h in table["phash"].to_pylist()], np.uint64).reshape(-1, 1))
            looks.append(np.frombuffer(b"".join(table[LOOK].to_pylist()), np.uint8).reshape(-1, _LOOK_BYTES))
            said = table[MINHASH].combine_chunks()
            is_long = said.is_valid().to_numpy(zero_copy_only=False)
            rows = np.zeros((len(table), duplicates.MINIMA), np.uint32)
            rows[is_long] = said.flatten().to_numpy().reshape(-1, duplicates.MINIMA)
            minima.append(rows)
            long.append(is_long[:, None])
        images = duplicates.image_groups(digests[:].view(f"S{_DIGEST_BYTES}").ravel(), hashes[:].ravel(), looks)
        return images, duplicates.caption_groups(minima, long[:].ravel())


def read_manifest(out: Output) -> dict[str, Any]:
    """Of a finished corpus. Raises InputError for what is none."""
    if out.folder is not None:
        return manifest.require(out.folder, "corpus", HINT)
    body = out.manifest()
    if body is None or body["stage"] != "corpus":
        raise InputError(f"{out.place}: no corpus, or an unfinished one; {HINT}")
    return body


class Corpus:
    """A finished corpus: a folder, or a place that fsspec knows. Raises InputError if it is not one."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._out = Output(str(folder))
        self.body = read_manifest(self._out)
        self.fingerprint: str = self.body["fingerprint"]
        try:
            self._index = pq.ParquetFile(self._out.folder / INDEX if self._out.folder else self._out.open(INDEX))
            self._places = Places(self._batches(PLACE.names))
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a key that is not UTF-8
            raise InputError(f"{self._at(INDEX)}: cannot be read ({error}); build the corpus again") from None
        self._lengths: dict[str, int] = {}  # of the shards that were asked about

    def _at(self, name: str) -> str:
        return f"{self._out.place}/{name}"

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def keys(self) -> list[str]:
        return list(self._places)

    def pairs(self) -> Iterator[Pair]:
        """All pairs in the order of the index, read in batches."""
        for batch in self._batches():
            for row in batch.to_pylist():
                yield Pair.from_json(row)

    def _batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        return self._index.iter_batches(_ROWS_READ, columns=columns, use_threads=False)

    def pair(self, key: str) -> Pair:
        """The pair with this key, from the part of the index that has it."""
        for part in range(self._index.num_row_groups):
            keys = self._index.read_row_group(part, columns=["key"], use_threads=False)["key"].to_pylist()
            if key in keys:
                return Pair.from_json(self._index.read_row_group(part).slice(keys.index(key), 1).to_pylist()[0])
        raise InputError(f"{self._out.place}: no pair with the key {key!r} in this corpus")

    def has_image(self, key: str) -> bool:
        """Whether there are bytes where the pair's image should be; they are not looked at."""
        shard, offset, size = self._places[key]
        if shard not in self._lengths:
            self._lengths[shard] = self._out.length(Path(shard).name)
        return 0 < size <= self._lengths[shard] - offset

    def place(self, key: str) -> str:
        """Where the bytes of the pair's image lie: the path of its shard, and from which to which byte."""
        shard, offset, size = self._places[key]
        return f"{self._at(shard)} bytes {offset}-{offset + size}"

    def image(self, key: str) -> bytes:
        """The bytes of a pair's image. Safe in threads and forked workers: it holds no open file."""
        if key not in self._places:
            raise InputError(f"{self._out.place}: no image with the key {key!r} in this corpus")
        shard, offset, size = self._places[key]
        if Path(shard).name != shard:
            raise InputError(f"{self._at(INDEX)}: the shard {shard!r} is not a file name; build the corpus again")
        try:
            found = self._out.read(shard, offset, size)
        except OSError as error:
            raise InputError(f"{self._at(shard)}: {error.strerror}; build the corpus again") from None
        if found is None:
            raise InputError(f"{self._at(shard)}: no such file; build the corpus again")
        if len(found) != size:
            raise InputError(f"{self._at(shard)}: ends before the image {key!r}; build the corpus again")
        return found


def open_images(root: Path) -> Callable[[str], bytes]:
    """How to get an image's bytes by key: from a corpus, or by relative path from any folder of image files.

    The function raises InputError naming the key if there is no such image, or if the path leads out of `root`.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give a corpus, or a folder of image files")
    if (root / INDEX).is_file():
        return Corpus(root).image
    inside = root.resolve()

    def image(key: str) -> bytes:
        path = Path(key)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"image {key!r}: leads out of {root}; give a path below it")
        try:
            found = (inside / path).resolve()
            data = found.read_bytes() if found.is_relative_to(inside) else None
        except (OSError, ValueError):  # ValueError: a NUL in the name
            raise InputError(f"image {key!r}: no such file in {root}") from None
        if data is None:
            raise InputError(f"image {key!r}: a link that leads out of {root}; put a copy there")
        return data

    return image
