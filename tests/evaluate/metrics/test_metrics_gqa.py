"""GQA: string equality, and the measures of its script beside accuracy."""

from __future__ import annotations

import pytest

from llavamed.evaluate.metrics import gqa as m


@pytest.mark.parametrize(
    ("prediction", "reference", "official", "strict"),
    [
        ("Dog.", "dog", 1, 1),
        ("a dog", "dog", 0, 1),
        ("dog ", "dog", 0, 1),
        ("No, it is not", "no", 0, 1),
        ("normal", "no", 0, 0),
        ("yes...", "yes", 1, 1),
        ("left", "right", 0, 0),
        ("", "right", 0, 0),
    ],
)
def test_whole_strings_officially_and_words_strictly(
    prediction: str, reference: str, official: int, strict: int
) -> None:
    assert (m.official_accuracy(prediction, reference), m.strict_exact(prediction, reference)) == (official, strict)
    assert m.parse_strict("", "dog") is m.parse_strict("normal", "no") is None


def test_a_summary_tells_binary_from_open_questions() -> None:
    rows = [(1.0, "query"), (0.0, "query"), (1.0, "verify"), (1.0, "logical")]
    assert m.summary(rows) == {"accuracy": 0.75, "open": 0.5, "binary": 1.0}
    assert m.summary(reversed(rows)) == m.summary(rows)
    assert m.summary([(1.0, "choose")]) == {"accuracy": 1.0, "binary": 1.0}


def test_consistency_is_over_questions_answered_right_that_entail_others() -> None:
    entailed = {"1": ["1", "2", "3"], "2": ["1"], "3": [], "4": ["1"]}
    credits = {"1": 1.0, "2": 1.0, "3": 0.0, "4": 0.0}
    assert m.consistency(entailed, credits) == (0.5 + 1.0) / 2
    assert m.consistency({"3": ["3"]}, {"3": 1.0}) is None


def test_the_distribution_is_the_weighted_chi_square_over_groups() -> None:
    scipy = pytest.importorskip("scipy.stats")
    rows = [("colour", "red", "red")] * 5 + [("colour", "blue", "red")] * 2 + [("colour", "red", "blue")]
    rows += [("animal", "dog", "cat"), ("animal", "cat", "dog"), ("animal", "cat", "cat")]
    colour = scipy.chisquare([7, 1], [6, 2]).statistic
    animal = scipy.chisquare([2, 1], [2, 1]).statistic
    assert m.distribution(rows) == pytest.approx((8 * colour + 3 * animal) / 11 / 100)
    assert m.distribution(rows[::-1]) == pytest.approx(m.distribution(rows))
    assert m.distribution([("animal", "dog", "something else")]) == 1 / 100  # the gold answer is missed once
    assert m.distribution([]) is None


def test_questions_about_things_in_common_have_three_valid_answers() -> None:
    assert m.official_belongs("Red.", {"red", "blue"}, "attr")
    assert not m.official_belongs("red", {"red", "blue"}, "twoCommon")
    assert m.official_belongs("color", {"red"}, "twoCommon")
