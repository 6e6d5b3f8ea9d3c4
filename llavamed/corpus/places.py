"""Where the images of a corpus lie, by key: some sixty bytes a pair, so that ten million fit in any machine.

A dict of key -> (shard, offset, size) takes about ten times as much, most of it for the headers of Python's objects.
Here every column is one array of numbers, in the order of the index, and the keys are one run of bytes. To find a key,
its CRC is looked up among the sorted ones; two keys may share a CRC, so the key itself is compared before it counts as
found.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

SCHEMA = pa.schema([("key", pa.string()), ("shard", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])


class Places:
    """Built from batches of the index, of which one at a time is in memory; `SCHEMA` has the columns that are read.
    Raises pa.ArrowException for batches without them, and UnicodeDecodeError for a key that is not UTF-8. Of rows with
    the same key the first is found."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        keys, lengths, sums = bytearray(), array("I"), array("I")
        shards, offsets, sizes = array("I"), array("q"), array("q")
        numbers: dict[str, int] = {}  # of the shards
        for batch in batches:
            missing = set(SCHEMA.names) - set(batch.schema.names)
            if missing or any(batch[name].null_count for name in SCHEMA.names):
                raise pa.ArrowInvalid(f"no {', '.join(sorted(missing)) or 'place'} for some pair")
            batch = batch.select(SCHEMA.names).cast(SCHEMA)  # another tool may have written it again
            encoded = [key.encode() for key in batch["key"].to_pylist()]
            keys += b"".join(encoded)
            lengths.extend(map(len, encoded))
            sums.extend(map(zlib.crc32, encoded))
            shards.extend(numbers.setdefault(name, len(numbers)) for name in batch["shard"].to_pylist())
            offsets.extend(batch["offset"].to_pylist())  # to_numpy() would import pandas
            sizes.extend(batch["size"].to_pylist())
        self._keys, self._ends = bytes(keys), np.cumsum(lengths, dtype=np.int64)
        unsorted = np.frombuffer(sums, np.uint32)
        self._rows = np.argsort(unsorted, kind="stable").astype(np.uint32)
        self._sums = unsorted[self._rows]
        self._names, self._shards, self._offsets, self._sizes = list(numbers), shards, offsets, sizes

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[str]:
        """The keys, in the order of the index."""
        start = 0
        for end in self._ends.tolist():
            yield self._keys[start:end].decode()
            start = end

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._row(key) is not None

    def __getitem__(self, key: str) -> tuple[str, int, int]:
        """(shard, offset, size); raises KeyError."""
        row = self._row(key)
        if row is None:
            raise KeyError(key)
        return self._names[self._shards[row]], self._offsets[row], self._sizes[row]

    def _row(self, key: str) -> int | None:
        sought = key.encode("utf-8", "surrogatepass")
        crc = np.uint32(zlib.crc32(sought))  # of the array's own type: another would copy the array
        place = int(self._sums.searchsorted(crc))
        while place < len(self._sums) and self._sums[place] == crc:
            row = int(self._rows[place])
            start = int(self._ends[row - 1]) if row else 0
            if self._keys[start : int(self._ends[row])] == sought:
                return row
            place += 1
        return None
