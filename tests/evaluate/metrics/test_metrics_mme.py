"""MME: four characters officially, the first whole word strictly."""

from __future__ import annotations

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
