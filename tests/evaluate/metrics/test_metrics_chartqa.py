"""ChartQA: the two public relaxed accuracies, and a strict one without their surprises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llavamed.evaluate.metrics import chartqa as m


def test_every_golden_value_of_both_scorers(golden: Callable[[str], Any]) -> None:
    for row in golden("chartqa"):
        assert m.official_relaxed(row["pred"], row["target"]) == float(row["qwen_pix2struct"])
        assert m.official_mistral(row["pred"], row["target"]) == row["mistral_lm_eval"]


def test_pix2struct_is_that_of_the_harness_which_copied_it(
    definitions: Callable[[str, str], Any], texts: Callable[[int, int], list[str]]
) -> None:
    theirs = definitions("lmms_eval", "tasks/chartqa/utils.py").relaxed_correctness
    answers = texts(4000, 67)
    for prediction, reference in zip(answers, [*answers[1:], "10%"], strict=True):
        assert m.official_relaxed(prediction, reference) == float(theirs(prediction, reference))


def test_mistral_is_that_of_the_harness_which_copied_it(
    definitions: Callable[[str, str], Any], texts: Callable[[int, int], list[str]]
) -> None:
    theirs = definitions("lm_eval", "tasks/chartqa/utils.py")
    plain, explicit = theirs.RelaxedCorrectness(), theirs.ExplicitPromptRelaxedCorrectness()
    answers = texts(4000, 71)
    for prediction, reference in zip(answers, reversed(answers), strict=True):
        assert m.official_mistral(prediction, reference) == plain.score(prediction, reference)
        stated = f"So.\nFinal **answer**: {prediction}"
        assert m.official_final_answer(stated, reference) == explicit.score(stated, reference)
        assert m.official_final_answer(prediction, reference) == explicit.score(prediction, reference)


@pytest.mark.parametrize(
    ("prediction", "reference", "relaxed", "exact"),
    [
        ("2019", "2010", 0, 0),  # both official versions take it
        ("2010", "2010", 1, 1),
        ("104", "100", 1, 0),
        ("$1,000", "1000", 1, 1),
        ("10%", "10", 1, 1),
        ("-100", "100", 0, 0),
        ("0.01", "0", 0, 0),
        ("Yes.", "Yes", 1, 1),
        ("yesterday", "Yes", 0, 0),
        ("about 100", "100", 0, 0),
        ("", "100", 0, 0),
    ],
)
def test_strict(prediction: str, reference: str, relaxed: int, exact: int) -> None:
    assert (m.strict_relaxed(prediction, reference), m.strict_exact(prediction, reference)) == (relaxed, exact)


def test_an_answer_without_a_final_answer_is_a_parse_failure() -> None:
    assert m.parse_final_answer("It is 5") is m.parse_final_answer("Answer:\n \n") is None
    assert m.parse_final_answer("Answer: 3\n**Final Answer:**\n\n [5]_\nbye") == "5"


def test_the_tolerance_is_five_per_cent_of_the_reference() -> None:
    for score in (m.official_relaxed, m.official_mistral, m.strict_relaxed):
        assert score("105", "100") == score("-95", "-100") == 1.0
        assert score("105.1", "100") == score("-105.1", "-100") == 0.0
