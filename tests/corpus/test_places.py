"""Keys are found by a short sum of theirs, and by nothing but themselves."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from collections.abc import Iterator

import pyarrow as pa
import pytest

from llavamed.corpus.places import SCHEMA, Places

Row = tuple[str, str, int, int]


def _batches(rows: list[Row], size: int = 7) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), size):
        columns = zip(*rows[start : start + size], strict=True)
        yield pa.record_batch([list(column) for column in columns], schema=SCHEMA)


def test_it_finds_what_a_dict_finds() -> None:
    rng = random.Random(0)
    rows = [(f"PMC{rng.randrange(10**7)}_é{n}", f"shard-{n // 90}.tar", 2**40 + n, n % 5) for n in range(500)]
    expected = {key: (shard, offset, size) for key, shard, offset, size in rows}
    found = Places(_batches(rows))
    assert {key: found[key] for key in expected} == expected
    assert list(found) == list(expected)
    assert len(found) == 500
    for absent in ("", "PMC", rows[0][0][:-1], rows[0][0] + "0", "\ud800"):
        assert absent not in found
    assert 3 not in found
    with pytest.raises(KeyError, match="'nobody'"):
        found["nobody"]


def test_keys_of_the_same_sum_are_told_apart() -> None:
    one, two = "plumless", "buckeroo"  # a well-known pair
    assert zlib.crc32(one.encode()) == zlib.crc32(two.encode())
    found = Places(_batches([("before", "s", 1, 1), (one, "s", 2, 2), ("between", "s", 3, 3)]))
    assert found[one] == ("s", 2, 2)
    assert two not in found
    both = Places(_batches([(two, "s", 4, 4), ("between", "s", 3, 3), (one, "s", 2, 2)]))
    assert [both[key][1] for key in (one, two)] == [2, 4]


def test_none_is_found_where_there_are_none() -> None:
    for found in (Places([]), Places([pa.record_batch([[], [], [], []], schema=SCHEMA)])):
        assert (len(found), list(found)) == (0, [])
        assert "a" not in found


def test_odd_keys_are_keys_and_the_first_of_two_that_are_alike_is_found() -> None:
    odd = ["", "\x00", "a\nb", "a", "ab", " a", "é/ü", "\U0001f600", "x" * 5000, "a"]
    found = Places(_batches([(key, "s", number, 1) for number, key in enumerate(odd)], 3))
    assert list(found) == odd
    assert [found[key][1] for key in odd] == [*range(9), 3]


@pytest.mark.parametrize("spoilt", ["a column is missing", "a number is none", "a key is null"])
def test_batches_of_another_form_are_refused(spoilt: str) -> None:
    batch = next(_batches([("a", "s", 1, 1)]))
    if spoilt == "a column is missing":
        batch = batch.select(["key", "shard", "offset"])
    elif spoilt == "a number is none":
        batch = batch.set_column(3, "size", pa.array(["many"]))
    else:
        batch = batch.set_column(0, "key", pa.array([None], pa.string()))
    with pytest.raises(pa.ArrowException, match=r"no size for some|no place for some|Failed to parse"):
        Places([batch])


def test_an_index_that_another_tool_wrote_again_is_read() -> None:
    batch = next(_batches([("a", "s", 1, 2)]))
    other = pa.schema(
        [("size", pa.int32()), ("key", pa.large_string()), ("shard", pa.large_string()), ("offset", pa.uint64())]
    )
    assert Places([batch.select(other.names).cast(other)])["a"] == ("s", 1, 2)


def test_a_pair_takes_less_than_a_hundred_bytes() -> None:
    rows = [(f"PMC{n:07d}_fig{n % 7}", f"shard-{n // 1000:06d}.tar", 100_000 * n, 99_000) for n in range(20_000)]
    tracemalloc.start()
    found = Places(_batches(rows, 100))
    used, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[rows[-1][0]] == rows[-1][1:]
    assert used < 100 * len(rows)
    assert most < 150 * len(rows)  # while it is built
