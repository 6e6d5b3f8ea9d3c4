"""POPE: yes by default officially, the first whole word strictly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llavamed.evaluate.metrics import pope as m


def test_every_golden_value_of_the_original_script(golden: Callable[[str], Any]) -> None:
    for row in golden("pope"):
        assert m.parse_official(row["text"]) == row["official"]


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("NO", "yes", "no"),
        ("", "yes", None),
        ("I cannot tell", "yes", None),
        ("no.yes", "no", "no"),
        ("Nothing here", "yes", None),
        ("Yes, not a doubt", "no", "yes"),
        ("I do not know", "no", None),
        ("no\nyes", "yes", "no"),  # split at blanks only: "no\nyes" is one word
        ("Yes", "yes", "yes"),
    ],
)
def test_what_is_a_yes(text: str, official: str, strict: str | None) -> None:
    assert (m.parse_official(text), m.parse_strict(text)) == (official, strict)
    assert m.official_accuracy(text, official) == 1.0
    assert m.strict_accuracy(text, "yes") == float(strict == "yes")


def test_other_labels_are_errors() -> None:
    with pytest.raises(ValueError, match="labels are yes and no"):
        m.official_accuracy("yes", "maybe")
