"""Paired tests against scipy and statsmodels, and what they must satisfy whatever the data."""

from __future__ import annotations

import numpy as np
import pytest

from llavamed.evaluate.significance import holm, mcnemar, paired_bootstrap


@pytest.mark.parametrize("table", [(0, 0), (1, 0), (5, 5), (3, 12), (12, 3), (0, 40), (251, 300), (900, 1000)])
def test_mcnemar_is_the_exact_test_of_statsmodels(table: tuple[int, int]) -> None:
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    first_only, second_only = table
    expected = contingency.mcnemar([[100, first_only], [second_only, 50]], exact=True).pvalue
    assert mcnemar(first_only, second_only) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("table", [(3, 12), (7, 8), (0, 6), (40, 61)])
def test_mcnemar_is_a_fair_coin_by_scipy(table: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert mcnemar(*table) == pytest.approx(stats.binomtest(table[0], sum(table)).pvalue, rel=1e-9)


def test_mcnemar_by_hand_and_for_a_benchmark_of_thousands() -> None:
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(2, 2) == mcnemar(0, 0) == 1.0
    assert 0 < mcnemar(3000, 3391) < 1e-5  # beyond what floats can hold as 2 to the n
    assert mcnemar(4, 9) == mcnemar(9, 4)


def test_with_one_question_an_image_it_is_scipys_paired_bootstrap() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(3)
    first, second = random.random(120), random.random(120) * 0.9
    ours = paired_bootstrap(first.tolist(), second.tolist(), [str(i) for i in range(120)], draws=20_000)
    theirs = stats.bootstrap(
        (first, second), lambda a, b, axis: (a - b).mean(axis=axis), paired=True, method="percentile",
        n_resamples=20_000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert ours.value == pytest.approx(float((first - second).mean()))
    assert (ours.low, ours.high) == pytest.approx((float(theirs.low), float(theirs.high)), abs=0.004)


def test_the_p_value_is_near_that_of_an_exact_sign_flip_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(5)
    first = random.random(60)
    second = np.clip(first - 0.05 + 0.2 * random.standard_normal(60), 0, 1)
    exact = stats.permutation_test(
        (first, second), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    ours = paired_bootstrap(first.tolist(), second.tolist(), [str(i) for i in range(60)])
    assert ours.p == pytest.approx(float(exact), abs=0.03)


def test_questions_of_one_image_stand_and_fall_together() -> None:
    """Forty images with ten equal questions each are forty observations: sqrt(10) wider than four hundred would be."""
    random = np.random.default_rng(0)
    by_image = random.choice([0.0, 1.0], size=40)
    first = np.repeat(by_image, 10).tolist()
    images = [f"{i // 10}.png" for i in range(400)]
    together = paired_bootstrap(first, [0.5] * 400, images)
    apart = paired_bootstrap(first, [0.5] * 400, [str(i) for i in range(400)])
    assert together.value == apart.value
    assert (together.n, together.images, apart.images) == (400, 40, 400)
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(10**0.5, rel=0.1)


def test_order_swap_and_equality() -> None:
    random = np.random.default_rng(1)
    first, second = random.random(50).tolist(), random.random(50).tolist()
    images = [str(i // 3) for i in range(50)]
    forward, backward = paired_bootstrap(first, second, images), paired_bootstrap(second, first, images)
    assert (forward.value, forward.p) == pytest.approx((-backward.value, backward.p))
    order = random.permutation(50)
    shuffled = paired_bootstrap([first[i] for i in order], [second[i] for i in order], [images[i] for i in order])
    assert (shuffled.low, shuffled.high, shuffled.p) == pytest.approx((forward.low, forward.high, forward.p))
    same = paired_bootstrap(first, first, images)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    always = paired_bootstrap([1.0] * 9, [0.0] * 9, list("abcdefghi"), draws=999)
    assert always.p == pytest.approx(2 / 1000)
    with pytest.raises(ValueError, match="no questions"):
        paired_bootstrap([], [], [])


def test_holm_is_that_of_statsmodels_and_of_its_paper() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    values = np.random.default_rng(0).random(20) ** 3
    assert holm(values.tolist()) == pytest.approx(multitest.multipletests(values, method="holm")[1].tolist())
