"""Images that lie inside a benchmark's own file: in the cells of Parquet, or as base64 in a TSV.

The hub's Parquet has an image as a struct of its file's bytes and its path; VLMEvalKit's TSV has it as
base64 in a column. Whole files are gigabytes, so only the place of each image is kept, and the one asked
for is read: a row group of Parquet at a time (the last few are kept, since neighbours are often asked
for together), one line of a TSV by its offset. Cells that are short name another row whose image they share.
"""

from __future__ import annotations

import base64
import binascii
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llavamed.errors import InputError

_ROW_GROUPS_KEPT = 4
_REFERENCE = 64  # characters: what is shorter in a TSV's image column is the index of another row (VLMEvalKit)


@dataclass(frozen=True)
class Cell:
    """Where an image is in a Parquet file."""

    file: Path
    row: int
    column: str


class ParquetImages:
    """Images by name, in cells. The bytes come as they were stored; `imaging.decode` makes a picture of them."""

    def __init__(self, cells: Mapping[str, Cell]) -> None:
        self._cells = cells

    def __contains__(self, name: object) -> bool:
        return name in self._cells

    def read(self, name: str) -> bytes:
        if name not in self._cells:
            raise InputError(f"image {name!r}: not in the benchmark's Parquet files")
        cell = self._cells[name]
        starts = _row_groups(cell.file)
        group = max(g for g, start in enumerate(starts) if start <= cell.row)
        value = _column(cell.file, group, cell.column)[cell.row - starts[group]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise InputError(f"{cell.file}: row {cell.row}, {cell.column}: holds no image bytes; fetch the file again")
        return data


def filled_cells(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(row, column) of every cell of `columns` that holds an image. Of the hub's struct only the path is read."""
    parquet = pq.ParquetFile(file)
    kinds = {name: parquet.schema_arrow.field(name).type for name in columns}
    light = [
        f"{name}.path" if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 else name
        for name, kind in kinds.items()
    ]
    start = 0
    for batch in parquet.iter_batches(columns=light):
        for column in columns:
            held = batch.column(batch.schema.get_field_index(column)).is_valid().to_pylist()
            yield from ((start + offset, column) for offset, present in enumerate(held) if present)
        start += batch.num_rows


@lru_cache(maxsize=64)
def _row_groups(file: Path) -> list[int]:
    """The first row of each row group."""
    metadata = pq.ParquetFile(file).metadata
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return list(accumulate(counts, initial=0))[:-1]


@lru_cache(maxsize=_ROW_GROUPS_KEPT)
def _column(file: Path, group: int, column: str) -> Any:
    try:
        return pq.ParquetFile(file).read_row_group(group, columns=[column]).column(0)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: cannot be read ({' '.join(str(error).split())}); fetch it again") from None


class TsvImages:
    """Images of the `image` column of a TSV, by the text of its `index` column."""

    def __init__(self, path: Path, places: Mapping[str, tuple[int, int]], column: int) -> None:
        self._path, self._places, self._column = path, places, column

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def read(self, name: str) -> bytes:
        cell = self._cell(name)
        cell = self._cell(cell) if len(cell) <= _REFERENCE else cell
        try:
            return base64.b64decode(cell, validate=True)
        except binascii.Error:
            raise InputError(f"{self._path}: the image of row {name!r} is not base64; fetch the file again") from None

    def _cell(self, name: str) -> str:
        if name not in self._places:
            raise InputError(f"{self._path}: no row with the index {name!r}")
        offset, size = self._places[name]
        with self._path.open("rb") as data:
            data.seek(offset)
            line = data.read(size).decode("utf-8-sig")
        return next(csv.reader([line], delimiter="\t"))[self._column].strip()


def read_tsv(path: Path) -> tuple[list[dict[str, str]], TsvImages]:
    """The rows of a TSV without their `image` cells, and the images."""
    rows: list[dict[str, str]] = []
    places: dict[str, tuple[int, int]] = {}
    header: list[str] = []
    column = -1
    for cells, offset, size in _records(path):
        if not header:
            header = [name.strip() for name in cells]
            if "index" not in header or "image" not in header:
                raise InputError(f"{path}: has no columns index and image; is this a TSV of VLMEvalKit?")
            column = header.index("image")
            continue
        if len(cells) != len(header):
            raise InputError(f"{path}: row {len(rows) + 1} has {len(cells)} cells under {len(header)} columns")
        row = {name: cell for name, cell in zip(header, cells, strict=True) if name != "image"}
        places[row["index"].strip()] = offset, size
        rows.append(row)
    return rows, TsvImages(path, places, column)


def _records(path: Path) -> Iterator[tuple[list[str], int, int]]:
    """(cells, offset, size in bytes) of each record; a quoted cell may hold line ends."""
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        with path.open("rb") as data:
            for line in data:
                end += len(line)
                yield line.decode("utf-8-sig" if end == len(line) else "utf-8")

    start = 0
    try:
        for cells in csv.reader(lines(), delimiter="\t"):
            yield cells, start, end - start
            start = end
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a UTF-8 table ({error}); fetch the file again") from None
