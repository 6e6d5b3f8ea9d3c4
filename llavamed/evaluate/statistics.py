"""How sure a score is: bootstrap intervals for a mean, for a function of sums, and for a paired difference.

A benchmark is a sample of the questions one could have asked. Drawing it again with replacement and
computing the score each time shows how far it would move: the 2.5th and 97.5th percentiles are the
95 % interval (Efron 1979). VQA-RAD has 272 closed and 179 open questions, so its intervals are about
+-5 to 7 points wide, wider than most differences that are published on it.

A score that is no mean (F1, BLEU of a corpus, MME's) is a function of sums over units, so a unit is a row of
counts, the rows that are drawn are added up, and the function is taken of the sums.

For two conditions on the same questions (real image against blank) the *differences* are drawn: what
a question's difficulty adds to both cancels, and a small gap can be told from none.

Questions are treated as independent; several questions on one image are not quite, so the true
interval is a little wider.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 8_000_000  # resampled values held in memory, 64 MB

Array = NDArray[np.float64]
Value = Callable[[Array], Array]  # sums (..., columns) -> (...)


@dataclass(frozen=True)
class Interval:
    """A score over `n` items and its 95 % percentile interval, in the unit of the values."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(values: Sequence[float] | Array, draws: int = 1000, seed: int = 0, of: Value | None = None) -> Interval:
    """The mean of `values`, or `of` the sums of its rows, with its interval from `draws` resamples.

    The order of `values` does not matter. Raises ValueError for no values: the mean of nothing is not 0.
    """
    if not len(values):
        raise ValueError("no values to average")
    rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    rows = rows[np.lexsort(rows.T[::-1])]  # sorted: the interval depends on the multiset alone
    n = len(rows)
    of = of or (lambda sums: sums[..., 0] / n)
    random = np.random.default_rng(seed)
    scores = np.empty(draws)
    step = max(1, _DRAWS_AT_ONCE // n)
    columns = np.ascontiguousarray(rows.T)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        drawn = random.integers(0, n, size=(count, n))
        sums = np.stack([column[drawn].sum(axis=1) for column in columns], axis=-1)
        scores[start : start + count] = of(sums)
    low, high = np.percentile(scores, [2.5, 97.5])
    return Interval(float(of(rows.sum(axis=0))), float(low), float(high), n)


def paired(real: Any, control: Any, draws: int = 1000, seed: int = 0, of: Value | None = None) -> Interval:
    """The score of `real` less that of `control` with its interval; both are about the same units in one order."""
    assert len(real) == len(control), f"{len(real)} values against {len(control)}"
    if of is None:
        return bootstrap(np.subtract(real, control), draws, seed)
    both = np.hstack([np.asarray(real), np.asarray(control)])
    width = both.shape[1] // 2
    return bootstrap(both, draws, seed, of=lambda sums: of(sums[..., :width]) - of(sums[..., width:]))
