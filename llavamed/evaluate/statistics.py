"""How sure a score is: bootstrap intervals for a mean and for a paired difference.

A benchmark is a sample of the questions one could have asked. Drawing it again with replacement and
taking the mean each time shows how far the score would move: the 2.5th and 97.5th percentiles are the
95 % interval (Efron 1979). VQA-RAD has 272 closed and 179 open questions, so its intervals are about
+-5 to 7 points wide, wider than most differences that are published on it.

For two conditions on the same questions (real image against blank) the *differences* are drawn: what
a question's difficulty adds to both cancels, and a small gap can be told from none.

Questions are treated as independent; several questions on one image are not quite, so the true
interval is a little wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DRAWS_AT_ONCE = 8_000_000  # resampled values held in memory, 64 MB


@dataclass(frozen=True)
class Interval:
    """A mean over `n` items and its 95 % percentile interval, in the unit of the values."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(values: Sequence[float], draws: int = 1000, seed: int = 0) -> Interval:
    """The mean of `values` with its interval from `draws` resamples. The order of `values` does not matter.

    Raises ValueError for no values: the mean of nothing is not 0.
    """
    if not len(values):
        raise ValueError("no values to average")
    sample = np.sort(np.asarray(values, dtype=np.float64))  # sorted: the interval depends on the multiset alone
    n = len(sample)
    random = np.random.default_rng(seed)
    means = np.empty(draws)
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        means[start : start + count] = sample[random.integers(0, n, size=(count, n))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(sample.mean()), float(low), float(high), n)


def paired(real: Sequence[float], control: Sequence[float], draws: int = 1000, seed: int = 0) -> Interval:
    """The mean of `real[i] - control[i]` with its interval; both lists are about the same items in one order."""
    assert len(real) == len(control), f"{len(real)} values against {len(control)}"
    return bootstrap(np.subtract(real, control), draws, seed)  # type: ignore[arg-type]
