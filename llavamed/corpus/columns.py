"""A column of a table on disk: rows of one width, added at the end and read a few at a time.

To find copies, half a kilobyte has to be known of every pair of a corpus, and each pair is looked at once in order and
then, if it may be a copy, again. So the half kilobytes stand in a file, and in memory only what is being looked at. It
is read by plain reads: pages of a mapped file would count as this process's memory until somebody else needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Column:
    """(n, width) numbers in a file of its own. Reads like an array: a slice, or the rows at some positions."""

    def __init__(self, path: Path, dtype: Any, width: int) -> None:
        self._empty = np.zeros((0, width), dtype)
        self._row_bytes = width * self._empty.itemsize
        self._length = 0
        self._file = path.open("w+b", buffering=0)

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self._empty.shape[1:], f"rows of {rows.shape[1:]} for {self._empty.shape[1:]}"
        self._file.seek(self._length * self._row_bytes)
        left = np.ascontiguousarray(rows, self._empty.dtype).reshape(-1).view(np.uint8).data
        while len(left):  # a plain file may take a part
            left = left[self._file.write(left) :]
        self._length += len(rows)

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        if isinstance(which, slice):
            start, stop, step = which.indices(self._length)
            assert step == 1, f"rows in steps of {step}"
            return self._read(start, max(0, stop - start))
        assert which.dtype.kind in "iu", f"positions that are {which.dtype}"
        if not len(which):
            return self._empty
        rows, back = np.unique(which, return_inverse=True)
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)  # neighbours are read at once
        found = np.concatenate([self._read(int(run[0]), len(run)) for run in runs])
        return np.asarray(found[back])

    def _read(self, start: int, count: int) -> np.ndarray:
        rows = np.empty((count, self._empty.shape[1]), self._empty.dtype)
        left = rows.reshape(-1).view(np.uint8).data
        self._file.seek(start * self._row_bytes)
        while len(left):
            taken = self._file.readinto(left)
            if not taken:
                raise OSError(f"{self._file.name} ends before row {start + count}: another program has cut it")
            left = left[taken:]
        return rows
