from __future__ import annotations

import numpy as np
import pytest

from llavamed.evaluate.statistics import bootstrap, paired


def test_the_interval_of_a_proportion_agrees_with_the_normal_approximation() -> None:
    values = [100.0] * 226 + [0.0] * 46  # the paper's 226 of 272
    interval = bootstrap(values, draws=4000, seed=1)
    p = 226 / 272
    error = 100 * 1.96 * np.sqrt(p * (1 - p) / 272)
    assert interval.value == pytest.approx(83.0882, abs=1e-4)
    assert interval.low == pytest.approx(100 * p - error, abs=0.8)
    assert interval.high == pytest.approx(100 * p + error, abs=0.8)
    assert interval.n == 272


def test_the_same_seed_gives_the_same_interval_in_any_order_of_items() -> None:
    values = list(np.random.default_rng(0).random(50))
    assert bootstrap(values, 200, seed=4) == bootstrap(values[::-1], 200, seed=4)
    assert bootstrap(values, 200, seed=4) != bootstrap(values, 200, seed=5)


def test_a_large_sample_is_drawn_in_pieces() -> None:
    interval = bootstrap(np.ones(5_000_000, dtype=float), draws=3)  # type: ignore[arg-type]
    assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_pairing_finds_a_small_gap_that_separate_intervals_hide() -> None:
    random = np.random.default_rng(2)
    real = random.random(200) * 100
    control = real - 2 + random.normal(0, 1, 200)
    gap = paired(list(real), list(control), 500)
    assert gap.low > 0
    assert bootstrap(list(real), 500).low < bootstrap(list(control), 500).high
    none = paired(list(real), list(real), 500)
    assert none.low <= 0 <= none.high


def test_no_values_are_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])
