from __future__ import annotations

import numpy as np
import pytest

from llavamed.evaluate import statistics
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


def test_a_large_sample_is_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = bootstrap(values, draws=40)
    for held in (1, 170, 1999):  # fewer than one draw, some, all but one
        monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", held)
        assert bootstrap(values, draws=40) == whole


def test_questions_of_one_image_are_drawn_together_and_its_order_is_no_matter() -> None:
    """Forty images with ten equal questions each are forty observations: sqrt(10) wider than four hundred would be."""
    random = np.random.default_rng(0)
    values = np.repeat(random.choice([0.0, 100.0], size=40), 10)
    images = [f"{place // 10}.png" for place in range(400)]
    together, apart = bootstrap(values, images=images), bootstrap(values)
    assert (together.value, together.n, together.images) == (apart.value, 400, 40)
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(10**0.5, rel=0.15)
    order = random.permutation(400)
    assert bootstrap(values[order], images=[images[place] for place in order]) == together


@pytest.mark.parametrize("count", [1, 2, 4])
def test_too_few_images_have_all_that_the_score_could_be_for_an_interval(count: int) -> None:
    images = [str(place % count) for place in range(20)]
    found = bootstrap([100.0] * 20, images=images)
    assert (found.value, found.low, found.high, found.images) == (100, 0, 100, count)
    gap = paired([100.0] * 20, [0.0] * 20, images=images)
    assert (gap.value, gap.low, gap.high) == (100, -100, 100)
    assert bootstrap([100.0] * 20, images=[str(place % 5) for place in range(20)]).low == 100


def test_a_number_of_sums_is_drawn_by_image_too() -> None:
    rows = np.array([[1.0, 2.0], [0.0, 1.0], [3.0, 3.0]] * 20)
    images = [str(place // 3) for place in range(60)]  # every image has the same sums
    found = bootstrap(rows, of=lambda sums: sums[..., 0] / sums[..., 1], images=images)
    assert found.value == found.low == found.high == pytest.approx(4 / 6)
    assert bootstrap(rows, of=lambda sums: sums[..., 0] / sums[..., 1]).low < 4 / 6


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
