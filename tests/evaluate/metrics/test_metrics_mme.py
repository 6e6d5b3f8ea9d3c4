"""MME: accuracy and accuracy+ over pairs of questions."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from llavamed.evaluate.metrics import mme as m


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("Yes", "yes", "yes"),
        ("No, there is not", "no", "no"),
        ("Not sure", "no", None),
        ("I think yes", None, "yes"),
        ("  yes", None, "yes"),
        ("eyes", "yes", None),
        ("", None, None),
    ],
)
def test_what_is_a_yes(text: str, official: str | None, strict: str | None) -> None:
    assert (m.parse_official(text), m.parse_strict(text)) == (official, strict)
    assert m.official_accuracy(text, "Yes") == float(official == "yes")
    assert m.strict_accuracy(text, "No\n") == float(strict == "no")


def test_the_parser_is_that_of_the_harness_which_copied_it(
    definitions: Callable[[str, str], Any], texts: Callable[[int, int], list[str]]
) -> None:
    parse = definitions("lmms_eval", "tasks/mme/utils.py").parse_pred_ans
    for text in texts(3000, 43):
        # the harness, unlike the script, strips, deletes periods and knows single letters
        if text == text.strip() and "." not in text and text.lower() not in ("y", "n"):
            assert (m.parse_official(text) or "other") == parse(text), text


def rows(credits: dict[str, list[tuple[float, float]]]) -> list[tuple[str, str, float]]:
    return [
        (f"{image}.png", subtask, credit)
        for subtask, pairs in credits.items()
        for image, pair in enumerate(pairs)
        for credit in pair
    ]


def test_accuracy_plus_wants_both_questions_of_an_image() -> None:
    found = m.summary(rows({"count": [(1, 1), (1, 0), (0, 0), (0, 1)]}))
    assert found["subtasks"] == {"count": {"accuracy": 0.5, "accuracy_plus": 0.25, "score": 75.0}}
    assert found["perception"] is found["cognition"] is None  # nine and four subtasks are absent


def test_a_perfect_model_has_2000_and_800_and_the_order_of_rows_does_not_matter() -> None:
    names = (*m.PERCEPTION, *m.COGNITION)
    perfect = m.summary(rows({name: [(1, 1)] * 3 for name in names}))
    assert (perfect["perception"], perfect["cognition"]) == (2000, 800)
    rng = random.Random(47)
    mixed = rows({name: [(rng.randint(0, 1), rng.randint(0, 1)) for _ in range(5)] for name in names})
    assert m.summary(rng.sample(mixed, len(mixed)))["subtasks"] == m.summary(mixed)["subtasks"]
    assert 0 <= m.summary(mixed)["perception"] <= 2000


def test_an_image_without_its_second_question_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"image '0.png' has 1 questions"):
        m.summary(itertools.islice(rows({"count": [(1, 1)]}), 1))
