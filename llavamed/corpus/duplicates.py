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

A corpus may have tens of millions of pairs. Miniatures and minima are read from where they are, an array or a `Column`
on disk, as far as they are needed; in memory are numbers of a fixed width, about a hundred bytes a pair.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import numpy as np

from llavamed.corpus.columns import Column
from llavamed.imaging.lookalike import MINIATURE

NEAR_BITS = 6  # of the perceptual hash
NEAR_LOOKS = 0.98  # correlation of two miniatures
_SETS, _WAVES = 6, 8
_APART = 0.01  # scaling and recompression change few waves by more
_WALLS = 4 * _APART  # from one wall of the grid to the next
_LOOK = MINIATURE**2
_RATIO = 2  # of the lengths of two runs that are joined
NEAR_CAPTIONS = 0.8
LEAST_WORDS = 8  # shorter captions ("Flow chart of the study.") are the same without being copies
MINIMA = 64
_ROWS = 4  # minima a band
_RUN = 3  # words
_AT_ONCE = 1 << 9  # pictures that are looked at together: those among them that are alike are compared each with each
_PAIRS_AT_ONCE = 1 << 16  # of pictures or captions
_CANDIDATES_HELD = 1 << 20  # of pictures; most are found in several sets
_ROWS_AT_ONCE = 1 << 11  # of minima and miniatures
_PRIME = (1 << 61) - 1
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)  # of a number that is two
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
Rows = np.ndarray | Column
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
        return _names(self._parent)


def _names(first: np.ndarray) -> np.ndarray:
    """The first of each one's group, but -1 for those that are alone."""
    sizes = np.bincount(first, minlength=len(first))
    return np.where(sizes[first] > 1, first, -1)


def image_groups(digests: np.ndarray, hashes: np.ndarray, looks: Rows) -> np.ndarray:
    """Groups of equal or nearly equal pictures, by the sha256 of their bytes (n, or as much of it as tells them apart),
    their `phash` (n, uint64) and their miniatures (n, 256, uint8)."""
    _, different, which = np.unique(digests, return_index=True, return_inverse=True)
    first = different[which]  # of its group, for each picture
    del digests, which
    different.sort()
    firsts = _Cells()
    for start in range(0, len(different), _AT_ONCE):
        part = different[start : start + _AT_ONCE]
        seen = looks[part]
        uneven = seen.min(axis=1) < seen.max(axis=1)  # a blank picture is near to none, and all are in one cell
        part = part[uneven]
        own, aside = _cells(seen[uneven])
        copies = _copies(firsts, part, own, aside, hashes, looks)
        joins = dict(copies[::-1].tolist())  # of several the first
        left = np.isin(part, copies[:, 0], invert=True)
        among = _Cells()
        among.add(part[left], own[left])
        for one, before in _copies(among, part[left], own[left], aside[left], hashes, looks).tolist():
            if one not in joins and before not in joins:
                joins[one] = before
        first[list(joins)] = list(joins.values())
        left = np.isin(part, list(joins), invert=True)
        firsts.add(part[left], own[left])
    return _names(first[first])


def _cells(looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of n miniatures the numbers of its cells, one of each set (n, sets), and the step along each wave to the
    neighbour that is within _APART, 0 where none is (n, sets, waves)."""
    flat = looks - looks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    at = flat / np.where(lengths > 0, lengths, 1.0) @ _BASIS.T / _WALLS
    whole = np.floor(at)
    cell = (whole.astype(np.int64) * _STEPS).reshape(-1, _SETS, _WAVES).sum(axis=2) + np.arange(_SETS)
    near = _APART / _WALLS
    aside = np.where(at - whole < near, -_STEPS, np.where(whole + 1 - at < near, _STEPS, 0))
    return cell, aside.reshape(-1, _SETS, _WAVES)


class _Cells:
    """Which pictures lie in a cell: for each set of waves runs of (cell, picture), each sorted. A run that is not much
    longer than the one behind it is joined with it (a log-structured merge), so there are few of them."""

    def __init__(self) -> None:
        self._runs: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(_SETS)]

    def add(self, pictures: np.ndarray, own: np.ndarray) -> None:
        if not len(pictures):
            return
        for runs, cells in zip(self._runs, own.T, strict=True):
            held = pictures.astype(np.uint32)
            while runs and len(runs[-1][0]) <= _RATIO * len(cells):
                older = runs.pop()
                cells, held = np.concatenate([older[0], cells]), np.concatenate([older[1], held])
            order = np.argsort(cells, kind="stable")
            runs.append((cells[order], held[order]))

    def around(
        self, pictures: np.ndarray, own: np.ndarray, aside: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(picture, one that lies in a cell of it or beside it) as two arrays, some at a time."""
        for runs, looked, steps in zip(self._runs, own.T, aside.transpose(1, 2, 0), strict=True):
            who = np.arange(len(pictures))
            for step in steps:  # along one wave
                beside = np.flatnonzero(step[who])
                looked = np.concatenate([looked, looked[beside] + step[who[beside]]])
                who = np.concatenate([who, who[beside]])
            order = np.argsort(looked)
            who, looked = pictures[who[order]], looked[order]
            for cells, held in runs:
                start = np.searchsorted(cells, looked)
                hit = np.flatnonzero(cells[np.minimum(start, len(cells) - 1)] == looked)  # few
                end = np.searchsorted(cells, looked[hit], side="right")
                yield from _each(who[hit], start[hit], end, held)


def _each(
    who: np.ndarray, start: np.ndarray, end: np.ndarray, held: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each of `who` with all that are `held` from its start to its end."""
    counts = end - start
    parts = np.cumsum(counts) // _PAIRS_AT_ONCE
    for some in np.split(np.arange(len(who)), np.flatnonzero(np.diff(parts)) + 1):
        behind = np.arange(counts[some].sum()) - np.repeat(np.cumsum(counts[some]) - counts[some], counts[some])
        yield np.repeat(who[some], counts[some]), held[np.repeat(start[some], counts[some]) + behind].astype(np.int64)


def _copies(
    among: _Cells, pictures: np.ndarray, own: np.ndarray, aside: np.ndarray, hashes: np.ndarray, looks: Rows
) -> np.ndarray:
    """(n, 2): a picture, and one before it that it is near to, sorted."""
    found = [np.zeros(0, np.uint64)]
    candidates: list[np.ndarray] = []
    held = 0
    for one, other in among.around(pictures, own, aside):
        near = (other < one) & (np.bitwise_count(hashes[one] ^ hashes[other]) <= NEAR_BITS)
        candidates.append(one[near].astype(np.uint64) << _HALF | other[near].astype(np.uint64))
        held += len(candidates[-1])
        if held >= _CANDIDATES_HELD:
            found.append(_near(candidates, looks))
            candidates, held = [], 0
    if candidates:
        found.append(_near(candidates, looks))
    return _unpacked(np.unique(np.concatenate(found)))


def _near(candidates: list[np.ndarray], looks: Rows) -> np.ndarray:
    """Those of them, pairs in one number each, whose miniatures correlate."""
    packed = np.unique(np.concatenate(candidates))
    alike = [_correlation(looks[few[:, 0]], looks[few[:, 1]]) for few in map(_unpacked, _few(packed))]
    return np.asarray(packed[np.concatenate(alike) >= NEAR_LOOKS])


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """(n, 2): the pictures of pairs that are one number each, which is sorted many times as fast as two."""
    return np.stack([packed >> _HALF, packed & _LOW], axis=1).astype(np.int64)


def _correlation(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each of n miniatures with the other beside it; in whole numbers up to the last step, so that it is the same
    everywhere."""
    a, b = ones.astype(np.float32), others.astype(np.float32)
    shared = _LOOK * _products(a, b) - _sums(a) * _sums(b)
    own, spread = (_LOOK * _products(one, one) - _sums(one) ** 2 for one in (a, b))
    return np.asarray(shared / np.sqrt(np.maximum(own * spread.astype(np.float64), 1.0)))


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, exactly, in whatever order they are added: 256 products of two bytes are less than 2^24."""
    return np.asarray(np.einsum("ij,ij->i", a, b).astype(np.int64))


def _sums(a: np.ndarray) -> np.ndarray:
    return np.asarray(a.sum(axis=1).astype(np.int64))


def caption_groups(minima: Rows, long: np.ndarray) -> np.ndarray:
    """Groups of nearly equal captions, by their `minhash` (n, 64); those that are not `long` (n, bool) are alone."""
    groups = Groups(len(long))
    at = np.flatnonzero(long)
    for start in range(0, MINIMA, _ROWS):
        bands = (minima[few][:, start : start + _ROWS].astype(np.uint64) for few in _few(at))
        sums = [(band * _FACTORS[:_ROWS]).sum(axis=1) for band in bands]  # of equal bands they are equal
        pairs = _side_by_side(np.concatenate(sums))
        for some in np.array_split(pairs, len(pairs) // _PAIRS_AT_ONCE + 1):
            some = at[some]
            some = some[groups.apart(some)]  # captions of one text are found in each band
            equal = [(minima[few[:, 0]] == minima[few[:, 1]]).mean(axis=1) for few in _few(some)]
            groups.join_all(some[np.concatenate(equal) >= NEAR_CAPTIONS])
    return groups.names()


def _few(rows: np.ndarray) -> list[np.ndarray]:
    """Parts of them (or one without any), as many as are read at once."""
    return np.array_split(rows, len(rows) // _ROWS_AT_ONCE + 1)


def _side_by_side(keys: np.ndarray) -> np.ndarray:
    """(n, 2): each position with the first that has the same key, and with the one before it."""
    order = np.argsort(keys, kind="stable")
    again = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(keys))))
    at = np.flatnonzero(again)
    return np.concatenate([order[np.stack([first[at], at], axis=1)], order[np.stack([at - 1, at], axis=1)]])
