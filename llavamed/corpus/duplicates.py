"""Which pairs of a corpus say the same: the same picture, nearly the same picture, or nearly the same caption.

Figures are published again in reviews and corrections, and case series repeat a caption with one word changed.
Nothing is deleted here: each pair of the index gets the group it belongs to, `image_group` and `caption_group`, named
after the first key in it, and who trains or splits decides.

Comparing all pairs is not possible, and plots make it hard: of two Kaplan-Meier curves the axes, half of the perceptual
hash, are the same. So each search has a cheap way to candidates and a finer test of them:

- pictures by their `miniature` (16 x 16 grey values). Near are those that correlate to 0.98 and whose `phash` differs
  in at most 6 of 64 bits: copies that were scaled or compressed again, not another patient's curve. Candidates are
  those that agree in one of six sets of 8 broad waves (terms of a cosine transform), each to 0.01: a grid is laid
  over the 8 numbers, and a picture looks into its own cell and, where it is near a wall, into the next. It is
  compared with the first of each group alone, and joins the first that it is near to: so a group holds what is near
  to its first picture, never a chain from one plot to another;
- captions by MinHash (Broder 1997) of their three-word runs: 64 minima in 16 bands of 4, then the share of equal
  minima, which estimates the share of runs in common, must be 0.8.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from llavamed.imaging.lookalike import MINIATURE

NEAR_BITS = 6  # of the perceptual hash
NEAR_LOOKS = 0.98  # correlation of two miniatures
_SETS, _WAVES = 6, 8
_APART = 0.01  # scaling and recompression change few waves by more
_WALLS = 4 * _APART  # from one wall of the grid to the next
NEAR_CAPTIONS = 0.8
LEAST_WORDS = 8  # shorter captions ("Flow chart of the study.") are the same without being copies
MINIMA = 64
_ROWS = 4  # minima a band
_RUN = 3  # words
_AT_ONCE = 1 << 16  # pairs of captions, or pictures, that are looked at together
_PRIME = (1 << 61) - 1
_WORD = re.compile(r"\w+")


def _basis() -> np.ndarray:
    """(sets x waves, 256): the broadest terms of a miniature's cosine transform but its mean, each of length 1, dealt
    out to the sets in turn."""
    k = np.arange(MINIATURE)
    cosines = np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / (2 * MINIATURE)) * np.sqrt(2 / MINIATURE)
    cosines[0] /= np.sqrt(2)
    terms = sorted(np.ndindex(MINIATURE, MINIATURE), key=lambda term: (sum(term), term))[1 : _SETS * _WAVES + 1]
    return np.stack([np.outer(cosines[a], cosines[b]).ravel() for n in range(_SETS) for a, b in terms[n::_SETS]])


_BASIS = _basis()
_STEPS = np.random.default_rng(2007).integers(1, 1 << 40, _SETS * _WAVES)  # from a cell to the next, along each wave
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

    def join_all(self, pairs: np.ndarray) -> None:
        """Join each of (n, 2) pairs: of two groups the larger name goes below the smaller, until all are one."""
        while len(pairs := pairs[self.apart(pairs)]):
            names = np.sort(self._parent[pairs], axis=1)
            np.minimum.at(self._parent, names[:, 1], names[:, 0])

    def apart(self, pairs: np.ndarray) -> np.ndarray:
        """Which of (n, 2) pairs are in different groups."""
        self._flatten()
        return np.asarray(self._parent[pairs[:, 0]] != self._parent[pairs[:, 1]])

    def _flatten(self) -> None:
        """Put everyone directly below the name of its group."""
        while not np.array_equal(above := self._parent[self._parent], self._parent):
            self._parent = above

    def names(self) -> np.ndarray:
        """For each position the first of its group, or -1 where it is alone."""
        self._flatten()
        first = self._parent
        sizes = np.bincount(first, minlength=len(first))
        return np.where(sizes[first] > 1, first, -1)


def image_groups(digests: np.ndarray, hashes: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """Groups of equal or nearly equal pictures, by the sha256 of their bytes (n, S32), their `phash` (n, uint64) and
    their miniatures (n, 256, uint8)."""
    groups = Groups(len(digests))
    _, different, which = np.unique(digests, return_index=True, return_inverse=True)
    groups.join_all(np.stack([different[which], np.arange(len(digests))], axis=1))
    different.sort()
    firsts: dict[int, list[int]] = defaultdict(list)  # cell -> the first pictures of the groups in it
    for start in range(0, len(different), _AT_ONCE):
        part = different[start : start + _AT_ONCE]
        for i, (own, around) in zip(part.tolist(), _cells(looks[part]), strict=True):
            candidates = np.array(sorted({one for cell in around for one in firsts.get(cell, ())}), np.int64)
            near = candidates[np.bitwise_count(hashes[candidates] ^ hashes[i]) <= NEAR_BITS]
            same = near[_correlation(looks[i], looks[near]) >= NEAR_LOOKS]
            if len(same):
                groups.join(int(same[0]), i)
                continue
            for cell in own:
                firsts[cell].append(i)
    return groups.names()


def _cells(looks: np.ndarray) -> Iterator[tuple[list[int], list[int]]]:
    """For each miniature the numbers of its cells, one of each set, and of these and their neighbours within _APART."""
    flat = looks - looks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    at = flat / np.where(lengths > 0, lengths, 1.0) @ _BASIS.T / _WALLS
    whole = np.floor(at)
    cell = (whole.astype(np.int64) * _STEPS).reshape(-1, _SETS, _WAVES).sum(axis=2) + np.arange(_SETS)
    near = _APART / _WALLS
    aside = np.where(at - whole < near, -_STEPS, np.where(whole + 1 - at < near, _STEPS, 0))
    for own, steps in zip(cell.tolist(), aside.reshape(-1, _SETS, _WAVES).tolist(), strict=True):
        around = []
        for first, to_next in zip(own, steps, strict=True):
            found = [first]
            for step in filter(None, to_next):
                found += [one + step for one in found]
            around += found
        yield own, around


def _correlation(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of a miniature with each of others; in whole numbers up to the last step, so that it is the same everywhere."""
    a, b = one.astype(np.int64), others.astype(np.int64)
    shared = len(a) * (b * a).sum(axis=1) - a.sum() * b.sum(axis=1)
    spread = len(a) * (b * b).sum(axis=1) - b.sum(axis=1) ** 2
    own = len(a) * (a * a).sum() - a.sum() ** 2
    return np.asarray(shared / np.sqrt(np.maximum(own * spread.astype(np.float64), 1.0)))


def caption_groups(minima: np.ndarray, long: np.ndarray) -> np.ndarray:
    """Groups of nearly equal captions, by their `minhash` (n, 64); those that are not `long` (n, bool) are alone."""
    groups = Groups(len(minima))
    at = np.flatnonzero(long)
    table = minima[at]
    for start in range(0, MINIMA, _ROWS):
        band = (table[:, start : start + _ROWS].astype(np.uint64) * _FACTORS[:_ROWS]).sum(axis=1)  # equal bands: equal
        pairs = _side_by_side(band)
        for part in np.array_split(pairs, len(pairs) // _AT_ONCE + 1):
            part = part[groups.apart(at[part])]  # captions of one text are found in each band
            near = (table[part[:, 0]] == table[part[:, 1]]).mean(axis=1) >= NEAR_CAPTIONS
            groups.join_all(at[part[near]])
    return groups.names()


def _side_by_side(keys: np.ndarray) -> np.ndarray:
    """(n, 2): each position with the first that has the same key, and with the one before it."""
    order = np.argsort(keys, kind="stable")
    again = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(keys))))
    at = np.flatnonzero(again)
    return np.concatenate([order[np.stack([first[at], at], axis=1)], order[np.stack([at - 1, at], axis=1)]])
