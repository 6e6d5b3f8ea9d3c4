"""Is one model better than another on the same questions, or was it luck?

Both models answered one list of questions, so the comparison is *paired*: what makes a question hard for
both cancels. Two tests, each with its own assumption:

*McNemar, exact* (McNemar 1947) for answers that are right or wrong. Only the questions on which exactly one model is
right tell anything; if the models were equal, each such question would be a fair coin. The p-value is
that coin's, two-sided, by integer arithmetic and not by the chi-square approximation, which fails for the few
dozen discordant questions of VQA-RAD.

*Paired bootstrap* for any score, by drawing whole images as `statistics.py` does and says why; of a score that is no
mean (F1, MME's, BLEU) the difference of the two scores is taken in each draw. With four images or fewer nothing is
known: the interval is all that the difference could be, and p is 1.

Whoever compares many pairs will find a "significant" one by chance: `holm` raises the p-values to what they
are worth together (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llavamed.evaluate.statistics import FEWEST, Array, Value, by_image, mean, resampled


@dataclass(frozen=True)
class Difference:
    """First minus second, in the unit of the values: mean, 95 % percentile interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float
    n: int  # questions
    images: int


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p-value for `first_only` questions that only the first model has right, and the reverse."""
    assert first_only >= 0, first_only
    assert second_only >= 0, second_only
    n, fewer = first_only + second_only, min(first_only, second_only)
    if first_only == second_only:
        return 1.0
    tail = ways = 1  # of k heads among n coins, for k = 0
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, tail / 2 ** (n - 1))


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    images: Sequence[str],
    draws: int = 10_000,
    seed: int = 0,
    most: float = 100.0,
    least: float | None = None,
) -> Difference:
    """The mean of `first[i] - second[i]` with its interval when whole images are drawn with replacement; it can be from
    `least` (-`most` where that is None) to `most`.

    The p-value is twice the share of draws on the far side of zero, with one added to both counts so
    that it is never 0 (Davison & Hinkley 1997, section 4.2). Raises ValueError for no values.
    """
    assert len(first) == len(second) == len(images), f"{len(first)}, {len(second)}, {len(images)} values"
    if not len(first):
        raise ValueError("no questions to compare")
    difference = np.subtract(first, second, dtype=np.float64)
    rows = by_image(np.stack([difference, np.ones_like(difference)], axis=-1), images)
    tiny = 1e-12 * max(1.0, float(np.abs(difference).max()))  # sums of thirds that are zero but for rounding
    return _difference(rows, mean, len(first), tiny, draws, seed, most, -most if least is None else least)


def paired_total(
    first: Array,
    second: Array,
    of: Value,
    images: Sequence[str],
    draws: int = 10_000,
    seed: int = 0,
    most: float = 100.0,
) -> Difference:
    """As `paired_bootstrap`, of `of` the sums of `first` less `of` the sums of `second`, (items, columns) each."""
    assert len(first) == len(second) == len(images), f"{len(first)}, {len(second)}, {len(images)} values"
    if not len(first):
        raise ValueError("no questions to compare")
    width = first.shape[1]

    def apart(sums: Array) -> Array:
        return of(sums[..., :width]) - of(sums[..., width:])

    rows = by_image(np.hstack([first, second]), images)
    return _difference(rows, apart, len(first), 1e-12 * most, draws, seed, most, -most)


def _difference(
    rows: Array, of: Value, n: int, tiny: float, draws: int, seed: int, most: float, least: float
) -> Difference:
    """Of `rows`, one an image, for `n` questions; draws within `tiny` of zero are on both sides of it."""
    value = float(of(rows.sum(axis=0)))
    if len(rows) < FEWEST:
        return Difference(value, least, most, 1.0, n, len(rows))
    drawn = resampled(rows, draws, seed, of)
    low, high = np.percentile(drawn, [2.5, 97.5])
    beyond = min(int((drawn <= tiny).sum()), int((drawn >= -tiny).sum()))
    p = min(1.0, 2 * (beyond + 1) / (draws + 1))
    return Difference(value, float(low), float(high), p, n, len(rows))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being several, in their order: reject where the result is below the level."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = so_far
    return adjusted
