"""A shard: some hundred pairs in one file, in one of two formats that others read.

    webdataset   shard-NUMBER.tar       <key>.jpg, <key>.txt (the caption), <key>.json (the Pair), next key, ...
    hf           shard-NUMBER.parquet   a row a pair: `image` as datasets.Image has it, and the Pair's fields as columns

The hard things: equal pairs must be equal bytes, and any image must be one `seek` away. In the tar every member has
time 0, owner 0, mode 0644. In the Parquet file the images are stored plainly, neither compressed (they are already) nor
as a dictionary, so each lies in the file in one piece; where, is found by looking for it once, after writing.
"""

from __future__ import annotations

import io
import json
import mmap
import tarfile
from collections.abc import Iterator, Set
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from llavamed.records import Pair

_TYPES = {"str": pa.string(), "int": pa.int32(), "float": pa.float64(), "bool": pa.bool_()}
_MENTION = pa.struct([(name, pa.string()) for name in ("sentence", "paragraph", "section", "panels")])
FIELDS = [  # of a Pair without its key, as columns
    (f.name, pa.list_(_MENTION) if f.name == "mentions" else _TYPES[str(f.type)])
    for f in fields(Pair)
    if f.name != "key"
]

Places = dict[str, tuple[int, int]]  # key -> where its image's bytes begin in the shard, and how many they are


class Shard(Protocol):
    def __init__(self, path: Path) -> None: ...
    def add(self, pair: Pair, data: bytes) -> None: ...
    def close(self) -> Places: ...


class TarShard:
    def __init__(self, path: Path) -> None:
        self._places: Places = {}
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, pair: Pair, data: bytes) -> None:
        self._places[pair.key] = self._member(pair.file, data), len(data)
        self._member(f"{pair.key}.txt", pair.caption.encode())
        self._member(f"{pair.key}.json", json.dumps(pair.to_json(), ensure_ascii=False, sort_keys=True).encode())

    def _member(self, name: str, data: bytes) -> int:
        """Append one file; returns where its bytes begin."""
        info = tarfile.TarInfo(name)  # its defaults are time 0, owner 0, mode 0644
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return self._tar.offset - padded

    def close(self) -> Places:
        self._tar.close()
        return self._places


class ParquetShard:
    _ROWS = 100  # a row group: what is held in memory, and what a reader reads at once
    _BYTES = 64 * 2**20  # of its images and texts: beyond it a group is written early
    _SCHEMA = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("key", pa.string()), *FIELDS],
        # how the datasets library marks a column as images
        {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
    )

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._held = 0  # bytes and characters
        self._sizes: list[tuple[str, int, bytes]] = []  # key, length, and the first bytes of its image
        plain = {"image.bytes": "NONE"}
        others = [name for name in self._SCHEMA.names if name not in ("image", "mentions")]
        packed = ["image.path", *others, *(f"mentions.list.element.{field.name}" for field in _MENTION)]
        self._file = pq.ParquetWriter(
            path, self._SCHEMA, compression=plain | dict.fromkeys(packed, "ZSTD"), use_dictionary=others,
            write_statistics=["key"],
        )  # fmt: skip

    def add(self, pair: Pair, data: bytes) -> None:
        self._rows.append({"image": {"bytes": data, "path": pair.file}, **pair.to_json()})
        self._sizes.append((pair.key, len(data), data[:4096]))
        self._held += len(data) + pair.text_length
        if len(self._rows) == self._ROWS or self._held > self._BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, self._SCHEMA))
            self._rows, self._held = [], 0

    def close(self) -> Places:
        self._flush()
        self._file.close()
        places, at = {}, 0
        if self._sizes:
            with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for key, size, head in self._sizes:
                    # plain encoding: four bytes of length, then the bytes
                    at = data.find(size.to_bytes(4, "little") + head, at) + 4
                    assert at >= 4, f"{self._path}: the image of {key} is not stored in one piece"
                    places[key] = at, size
                    at += size
        return places


FORMATS: dict[str, type[Shard]] = {"webdataset": TarShard, "hf": ParquetShard}
SUFFIXES = {"webdataset": ".tar", "hf": ".parquet"}


def read(path: Path) -> Iterator[tuple[Pair, bytes]]:
    """The pairs of a shard with their images, in order."""
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        for part in range(file.num_row_groups):
            for row in file.read_row_group(part, use_threads=False).to_pylist():
                yield Pair.from_json(row), row["image"]["bytes"]
        return
    with tarfile.open(path) as tar:
        data = b""
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, f"{path}: {member.name} is no file"
            if member.name.endswith(".json"):
                yield Pair.from_json(json.loads(file.read())), data
            elif not member.name.endswith(".txt"):
                data = file.read()


def copy_without(path: Path, removed: Set[str], out: Path) -> Places:
    """Write the shard anew without these keys; returns where the images are now."""
    shard = FORMATS["hf" if path.suffix == ".parquet" else "webdataset"](out)
    for pair, data in read(path):
        if pair.key not in removed:
            shard.add(pair, data)
    return shard.close()
