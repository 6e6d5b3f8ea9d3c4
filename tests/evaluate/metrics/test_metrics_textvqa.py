"""TextVQA by M4C's evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llavamed.evaluate.metrics import textvqa as m


def test_every_golden_value_of_the_original_evaluator(golden: Callable[[str], Any]) -> None:
    for row in golden("m4c"):
        assert m.normalize(row["pred"]) == row["norm"]
        assert m.official_accuracy(row["pred"], row["gts"]) == row["score"]


def test_possessives_are_words_of_their_own_and_both_sides_are_normalised() -> None:
    assert m.normalize("Levi's") == "levi 's"
    assert m.official_accuracy("the Levi's", ["levi 's"] * 10) == 1.0
    assert m.official_accuracy("1,000", ["1000"] * 10) == m.official_accuracy("1000", ["1,000"] * 10) == 1.0


def test_any_number_of_answers_but_ten_is_an_error() -> None:
    with pytest.raises(ValueError, match="exactly 10"):
        m.official_accuracy("a", ["a"] * 9)


def test_the_normaliser_is_that_of_the_harness_which_copied_it(
    definitions: Callable[[str, str], Any], texts: Callable[[int, int], list[str]]
) -> None:
    theirs = definitions("lmms_eval", "tasks/_task_utils/vqa_eval_metric.py").EvalAIAnswerProcessor()
    for text in texts(4000, 37):
        assert m.normalize(text) == theirs(text)


def test_the_strict_score_wants_the_answer_most_people_gave() -> None:
    ten = ["pepsi"] * 7 + ["coca cola"] * 3
    assert m.official_accuracy("Coca-Cola", ten) == pytest.approx(0.9)
    assert (m.strict_exact("Coca-Cola", ten), m.strict_exact("a Pepsi!", ten)) == (0.0, 1.0)
