"""The files that benchmarks come in - JSON, JSON lines, CSV, TSV, Parquet - as rows of plain values.

Each function gives the rows of a file; `sha256_of` says which version of it was read. What is absent or is
not what its name says is an InputError that tells what belongs there and where it comes from.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llavamed.errors import InputError
from llavamed.manifest import file_sha256

csv.field_size_limit(sys.maxsize)  # a TSV of VLMEvalKit has whole images in its cells


def data_file(data: Path, names: Iterable[str], benchmark: str, origin: str) -> Path:
    """The first file that matches one of `names` (which may be patterns) in `data`."""
    return data_files(data, names, benchmark, origin)[0]


def data_files(data: Path, names: Iterable[str], benchmark: str, origin: str) -> list[Path]:
    """All files that match the first of the patterns `names` that any file in `data` matches, sorted."""
    names = list(names)
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; {benchmark} needs {' or '.join(names)} in it: {origin}")
    for name in names:
        found = sorted(path for path in data.glob(name) if path.is_file())
        if found:
            return found
    raise InputError(f"{data}: holds no {' or '.join(names)}; {benchmark} needs it: {origin}")


def sha256_of(paths: Iterable[Path], data: Path) -> dict[str, str]:
    """{path below `data`: sha256 of the file}."""
    return {str(path.relative_to(data)): file_sha256(path) for path in paths}


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error}); fetch the file again") from None


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON list of objects."""
    return objects(read_json(path), f"{path}: must be a JSON list of objects")


def objects(value: Any, otherwise: str) -> list[dict[str, Any]]:
    """`value` if it is a list of objects; else an InputError that says `otherwise`."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise InputError(otherwise)
    return value


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file (perhaps .gz), or of a TSV by its name, with the header's columns as keys."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as text:
            return list(_table(text, path))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch the file again") from None


def _table(lines: Iterable[str], path: Path) -> Iterator[dict[str, str]]:
    rows = csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        header = [name.strip() for name in next(rows, [])]
        for row in rows:
            if len(row) != len(header):
                raise InputError(
                    f"{path}:{rows.line_num}: {len(row)} cells under {len(header)} columns; fetch the file again"
                )
            yield dict(zip(header, row, strict=True))
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; fetch the file again") from None
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not a table ({error}); fetch the file again") from None


def read_parquet(path: Path, leave: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The rows of a Parquet file without the columns `leave` (its images, which are read one by one)."""
    try:
        file = pq.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if name not in set(leave)]
        rows: list[dict[str, Any]] = file.read(columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not Parquet ({' '.join(str(error).split())}); fetch the file again") from None
    return rows


def text_of(row: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    """The value as stripped text (numbers occur as answers); an InputError that names file, row and key."""
    value = row.get(key)
    if value is None:
        raise InputError(f"{path}: row {number} has no {key!r}; is this the benchmark's own file?")
    return str(value).strip()


def subfolder(data: Path, *names: str) -> Path:
    """The first of `names` that is a folder in `data`; without any the first, which the error will name."""
    return next((data / name for name in names if (data / name).is_dir()), data / names[0])
