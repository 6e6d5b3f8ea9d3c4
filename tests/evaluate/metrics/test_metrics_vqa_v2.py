"""VQA v2's consensus of ten annotators, and the strict reading of the answer most gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llavamed.evaluate.metrics import vqa_v2 as m


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_an_answer_is_as_right_as_many_of_ten_gave_it(agreeing: int, score: float) -> None:
    references = ["cat"] * agreeing + ["dog"] * (10 - agreeing)
    assert m.official_accuracy("Cat.", references) == pytest.approx(score, abs=1e-15)


def test_references_keep_articles_and_where_all_agree_even_punctuation() -> None:
    assert m.official_accuracy("the dog", ["the dog"] * 9 + ["cat"]) == 0.0  # the prediction loses its article
    assert m.official_accuracy("1,000", ["1,000"] * 10) == 0.0  # ten alike are compared as written
    assert m.official_accuracy("1,000", ["1,000"] * 9 + ["2"]) == 1.0
    assert m.strict_exact("the dog", ["the dog"] * 9 + ["cat"]) == m.strict_exact("1,000", ["1,000"] * 10) == 1.0


def test_the_strict_score_wants_the_answer_most_people_gave() -> None:
    ten = ["dog"] * 5 + ["black dog"] * 4 + ["cat"]
    assert (m.official_accuracy("black dog", ten), m.strict_exact("black dog", ten)) == (1.0, 0.0)
    assert m.strict_f1("black dog", ten) == pytest.approx(2 / 3)
    assert m.strict_exact("cat", ["dog", "cat"]) == m.strict_exact("dog", ["dog", "cat"]) == 1.0  # equally many
    assert m.strict_exact("", ten) == 0.0


def test_yes_no_is_read_from_a_sentence_in_strict_mode_only() -> None:
    ten = ["yes"] * 8 + ["no"] * 2
    assert (m.official_accuracy("Yes, it is", ten), m.strict_exact("Yes, it is", ten)) == (0.0, 1.0)
    assert m.parse_strict("I cannot know", ten) is None
    assert m.strict_exact("I cannot know", ten) == 0.0


def test_no_references_is_an_error() -> None:
    for score in (m.official_accuracy, m.strict_exact, m.strict_f1):
        with pytest.raises(ValueError, match="references: empty"):
            score("cat", [])


def test_the_normaliser_is_that_of_the_harness_which_copied_it(
    definitions: Callable[[str, str], Any], texts: Callable[[int, int], list[str]]
) -> None:
    theirs = definitions("lmms_eval", "tasks/_task_utils/vqa_eval_metric.py").EvalAIAnswerProcessor()
    for text in texts(3000, 29):
        clean = text.replace("\n", " ").replace("\t", " ").strip()
        expected = theirs.process_digit_article(theirs.process_punctuation(clean))
        if ",," not in text:  # its pattern for commas in numbers takes several, the official one a single one
            assert m.normalize(text) == expected


def test_the_accuracy_is_the_leave_one_out_definition(texts: Callable[[int, int], list[str]]) -> None:
    answers = texts(3000, 31)
    for start in range(0, 3000 - 10, 10):
        ten = [*answers[start : start + 3], *["left lung"] * 4, *["a lung"] * 3]
        for prediction in (answers[start], "left lung", "lung", "LEFT - LUNG"):
            given = [m.strip_punctuation(text) for text in ten]
            accuracies = []
            for left_out in range(10):
                others = given[:left_out] + given[left_out + 1 :]
                accuracies.append(min(1, float(others.count(m.normalize(prediction))) / 3))
            assert m.official_accuracy(prediction, ten) == sum(accuracies) / 10
