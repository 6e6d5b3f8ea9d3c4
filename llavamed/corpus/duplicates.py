"""Which pairs of a corpus say the same: the same picture, nearly the same picture, or nearly the same caption.

Figures are published again in reviews and corrections, and case series repeat a caption with one word changed.
Nothing is deleted here: each pair of the index gets the group it belongs to, `image_group` and `caption_group`, named
after the first key in it, and who trains or splits decides.

Comparing all pairs is not possible, so both searches first collect pairs that share a part of their fingerprint:

- pictures by `phash`: two hashes that differ in at most 6 of 64 bits have at least two of their eight bytes in common,
  so of the 28 ways to choose two bytes one puts them side by side (Manku et al. 2007). Exact within 6 bits;
- captions by MinHash (Broder 1997) of their three-word runs: 64 minima in 16 bands of 4, then the share of equal
  minima, which estimates the share of runs in common, must be 0.8.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np

NEAR_BITS = 6
NEAR_CAPTIONS = 0.8
LEAST_WORDS = 8  # shorter captions ("Flow chart of the study.") are the same without being copies
MINIMA = 64
_ROWS = 4  # minima a band
_RUN = 3  # words
_AT_ONCE = 1 << 16  # pairs of captions that are compared together
_PRIME = (1 << 61) - 1
_WORD = re.compile(r"\w+")

_random = np.random.default_rng(1997)
_FACTORS = _random.integers(1, 1 << 31, MINIMA, dtype=np.uint64)
_OFFSETS = _random.integers(0, 1 << 31, MINIMA, dtype=np.uint64)


def minhash(caption: str) -> np.ndarray | None:
    """64 minima (uint32) of a caption, or None for one too short to be told from others."""
    words = _WORD.findall(caption.lower())
    if len(words) < LEAST_WORDS:
        return None
    runs = {zlib.crc32(" ".join(words[i : i + _RUN]).encode()) for i in range(len(words) - _RUN + 1)}
    values = np.fromiter(runs, np.uint64, len(runs))
    hashed = (values[:, None] * _FACTORS + _OFFSETS) % np.uint64(_PRIME)  # 32 + 31 bits: no overflow
    return (hashed & np.uint64(0xFFFFFFFF)).min(axis=0).astype(np.uint32)


class Groups:
    """Union-find over positions 0..n-1; a group's name is its smallest member."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = int(self._parent[i])
        return i

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)

    def names(self) -> np.ndarray:
        """For each position the first of its group, or -1 where it is alone."""
        first = np.fromiter((self.find(i) for i in range(len(self._parent))), np.int64, len(self._parent))
        sizes = np.bincount(first, minlength=len(first))
        return np.where(sizes[first] > 1, first, -1)


def image_groups(digests: Sequence[str], hashes: np.ndarray) -> np.ndarray:
    """Groups of equal or nearly equal pictures, by the sha256 of their bytes and their `phash` (uint64)."""
    groups = Groups(len(digests))
    for a, b in _equal(digests):
        groups.join(a, b)
    unique, first, of = np.unique(hashes, return_index=True, return_inverse=True)
    for i, u in enumerate(of):
        groups.join(int(first[u]), i)
    for a, b in _near(unique):
        groups.join(int(first[a]), int(first[b]))
    return groups.names()


def caption_groups(minima: np.ndarray, long: np.ndarray) -> np.ndarray:
    """Groups of nearly equal captions, by their `minhash` (n, 64); those that are not `long` (n, bool) are alone."""
    groups = Groups(len(minima))
    at = np.flatnonzero(long)
    table = minima[at]
    for start in range(0, MINIMA, _ROWS):
        band = (table[:, start : start + _ROWS].astype(np.uint64) * _FACTORS[:_ROWS]).sum(axis=1)  # equal bands: equal
        pairs = _side_by_side(band)
        for part in np.array_split(pairs, len(pairs) // _AT_ONCE + 1):
            near = (table[part[:, 0]] == table[part[:, 1]]).mean(axis=1) >= NEAR_CAPTIONS
            for one, two in at[part[near]].tolist():
                groups.join(one, two)
    return groups.names()


def _equal(values: Iterable[str]) -> Iterator[tuple[int, int]]:
    seen: dict[str, int] = {}
    for i, value in enumerate(values):
        if seen.setdefault(value, i) != i:
            yield seen[value], i


def _near(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of different hashes within NEAR_BITS."""
    octets = hashes[:, None] >> (np.arange(8, dtype=np.uint64) * np.uint64(8)) & np.uint64(255)
    for one, two in combinations(range(8), 2):
        key = octets[:, one] << np.uint64(8) | octets[:, two]
        order = np.argsort(key, kind="stable")
        key, sorted_hashes = key[order], hashes[order]
        distance_apart = 1
        alive = np.flatnonzero(key[1:] == key[:-1])
        while len(alive):
            bits = np.bitwise_count(sorted_hashes[alive] ^ sorted_hashes[alive + distance_apart])
            for i in alive[bits <= NEAR_BITS]:
                yield int(order[i]), int(order[i + distance_apart])
            distance_apart += 1
            alive = alive[alive + distance_apart < len(key)]
            alive = alive[key[alive] == key[alive + distance_apart]]


def _side_by_side(keys: np.ndarray) -> np.ndarray:
    """(n, 2): each position with the first that has the same key, and with the one before it."""
    order = np.argsort(keys, kind="stable")
    again = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(keys))))
    at = np.flatnonzero(again)
    return np.concatenate([order[np.stack([first[at], at], axis=1)], order[np.stack([at - 1, at], axis=1)]])
