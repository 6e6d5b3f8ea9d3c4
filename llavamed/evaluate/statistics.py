"""How sure a score is: bootstrap intervals for a mean, for a function of sums, and for a paired difference.

A benchmark is a sample of the questions one could have asked. Drawing it again with replacement and
computing the score each time shows how far it would move: the 2.5th and 97.5th percentiles are the
95 % interval (Efron 1979). VQA-RAD has 272 closed and 179 open questions, so its intervals are about
+-5 to 7 points wide, wider than most differences that are published on it.

The hard thing is that questions are not independent: SLAKE asks eleven questions an image, and a model that
misreads the image misses them together. So *images* are drawn, not questions, and all questions of a drawn image
come along (the cluster bootstrap); with one question an image, or without images, this is the usual one. `compare` and
the judge draw the same way (`significance.py`).

A score that is no mean (F1, BLEU of a corpus, MME's) is a function of sums, so an item is a row of counts, the rows of
the images that are drawn are added up, and the function is taken of the sums. A mean is the function sum / number.

For two conditions on the same questions (real image against blank) the *differences* are drawn: what
a question's difficulty adds to both cancels, and a small gap can be told from none.

Four images or fewer say nothing of how far a score would move (drawing one image gives the same score every time): the
interval is then all that the score could be, and no gap is beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 5  # images; fewer have no interval
_DRAWS_AT_ONCE = 8_000_000  # resampled values held in memory, 64 MB

Array = NDArray[np.float64]
Value = Callable[[Array], Array]  # sums (..., columns) -> (...)


@dataclass(frozen=True)
class Interval:
    """A score over `n` items on `images` images and its 95 % percentile interval, in the unit of the values."""

    value: float
    low: float
    high: float
    n: int
    images: int


def bootstrap(
    values: Sequence[float] | Array,
    draws: int = 1000,
    seed: int = 0,
    of: Value | None = None,
    images: Sequence[str] | None = None,
    most: float = 100.0,
    least: float = 0.0,
) -> Interval:
    """The mean of `values`, or `of` the sums of its rows, with its interval from `draws` resamples of whole `images`
    (one for each value; None: each has its own). `least` and `most` are what the score could be.

    The order of `values` does not matter. Raises ValueError for no values: the mean of nothing is not 0.
    """
    if not len(values):
        raise ValueError("no values to average")
    rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    if images is None:
        rows = rows[np.lexsort(rows.T[::-1])]
    if of is None:
        rows, of = np.hstack([rows, np.ones((len(rows), 1))]), mean
    if images is not None:
        rows = by_image(rows, images)
    value = float(of(rows.sum(axis=0)))
    low, high = float(least), float(most)
    if len(rows) >= FEWEST:
        low, high = map(float, np.percentile(resampled(rows, draws, seed, of), [2.5, 97.5]))
    return Interval(value, low, high, len(values), len(rows))


def paired(
    real: Any,
    control: Any,
    draws: int = 1000,
    seed: int = 0,
    of: Value | None = None,
    images: Sequence[str] | None = None,
    most: float = 100.0,
) -> Interval:
    """The score of `real` less that of `control` with its interval; both are about the same items in one order."""
    assert len(real) == len(control), f"{len(real)} values against {len(control)}"
    if of is None:
        return bootstrap(np.subtract(real, control), draws, seed, None, images, most, -most)
    both = np.hstack([np.asarray(real), np.asarray(control)])
    width = both.shape[1] // 2

    def apart(sums: Array) -> Array:
        return of(sums[..., :width]) - of(sums[..., width:])

    return bootstrap(both, draws, seed, apart, images, most, -most)


def mean(sums: Array) -> Array:
    """Of the last column's number of values, whose sum is the first."""
    result: Array = sums[..., 0] / sums[..., -1]
    return result


def by_image(rows: Array, images: Sequence[str]) -> Array:
    """The rows (items, columns) added up by image, in the order of the images' names."""
    assert len(images) == len(rows), f"{len(images)} images of {len(rows)} items"
    _, member = np.unique(np.asarray(images), return_inverse=True)
    return np.stack([np.bincount(member, weights=column) for column in rows.T], axis=-1)


def resampled(rows: Array, draws: int, seed: int, of: Value) -> Array:
    """`of` the sums of as many rows as there are, drawn with replacement; `draws` times."""
    n = len(rows)
    random = np.random.default_rng(seed)
    scores = np.empty(draws)
    step = max(1, _DRAWS_AT_ONCE // n)
    columns = np.ascontiguousarray(rows.T)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        drawn = random.integers(0, n, size=(count, n))
        sums = np.stack([column[drawn].sum(axis=1) for column in columns], axis=-1)
        scores[start : start + count] = of(sums)
    return scores
