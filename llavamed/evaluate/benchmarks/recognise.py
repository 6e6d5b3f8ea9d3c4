"""Which benchmark a folder holds, for the person who gave the folder of another one.

Many benchmarks are a `test.json`, so names are not enough: each reader states SIGNS, pairs of a file pattern
and words that stand in the file's first characters (of Parquet: in its column names).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_HEAD = 4096  # bytes


def looks_like(data: Path, readers: Iterable[Any]) -> list[str]:
    """The names of the readers (`benchmark.py` says what one is) whose signs are in folder `data`."""
    if not data.is_dir():
        return []
    return [reader.NAME for reader in readers if any(_has(data, *sign) for sign in reader.SIGNS)]


def _has(data: Path, pattern: str, *words: str) -> bool:
    path = next((path for path in sorted(data.glob(pattern)) if path.is_file()), None)
    return path is not None and all(word in _head(path) for word in words)


def _head(path: Path) -> str:
    if path.suffix == ".parquet":
        try:
            return " ".join(pq.read_schema(path).names)
        except (OSError, pa.ArrowException):
            return ""
    with path.open("rb") as data:
        return data.read(_HEAD).decode("utf-8", errors="replace")
