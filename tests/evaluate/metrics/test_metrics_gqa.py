"""GQA: string equality officially, words strictly."""

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
