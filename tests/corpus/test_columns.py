"""Rows on disk read like an array's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llavamed.corpus.columns import Column


@pytest.mark.parametrize(("kind", "width"), [(np.uint8, 16), (np.uint64, 1), (np.uint32, 64), (np.bool_, 1)])
def test_a_column_reads_like_the_array_that_was_put_in(kind: type, width: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(width)
    rows = rng.integers(0, 2 if kind is np.bool_ else 256, (1000, width)).astype(kind)
    column = Column(tmp_path / "rows", kind, width)
    assert (len(column), column[:].shape) == (0, (0, width))
    for part in np.split(rows, [0, 1, 400, 401]):
        column.append(part)
        assert np.array_equal(column[len(column) - len(part) :], part)  # to read in between changes nothing
    assert (tmp_path / "rows").stat().st_size == rows.nbytes
    for which in (slice(None), slice(3, 900), slice(990, 2000), slice(7, 7), slice(9, 2), slice(-4, None)):
        assert np.array_equal(column[which], rows[which])
    for at in (rng.integers(0, 1000, 300), np.arange(200, 500), np.array([999, 0, 5, 5, 6]), np.zeros(0, np.int64)):
        found = column[at]
        assert found.dtype == kind
        assert np.array_equal(found, rows[at])
    column.close()


def test_rows_of_another_width_are_not_taken(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="4"):
        Column(tmp_path / "rows", np.uint8, 16).append(np.zeros((2, 4)))


def test_a_column_that_ends_early_is_told(tmp_path: Path) -> None:
    column = Column(tmp_path / "rows", np.uint8, 4)
    column.append(np.zeros((10, 4), np.uint8))
    (tmp_path / "rows").open("r+b").truncate(17)
    with pytest.raises(OSError, match="ends before row 10"):
        column[:]


@pytest.mark.parametrize("which", [slice(None, None, 2), slice(None, None, -1), np.ones(10, bool), np.array([1.0])])
def test_what_a_column_would_read_otherwise_than_an_array_is_not_asked(
    which: slice | np.ndarray, tmp_path: Path
) -> None:
    column = Column(tmp_path / "rows", np.uint8, 4)
    column.append(np.zeros((10, 4), np.uint8))
    with pytest.raises(AssertionError, match=r"steps|positions"):
        column[which]
