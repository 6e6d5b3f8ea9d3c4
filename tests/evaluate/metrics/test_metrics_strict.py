"""The rules that all strict scores share: whole words, whole numbers, one stated option."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llavamed.evaluate.metrics import strict as m


@pytest.mark.parametrize(
    ("prediction", "choice"),
    [
        ("Yes.", "yes"),
        ("no, the heart is normal", "no"),
        ("I see no mass, yes", "no"),  # the first one counts
        ("NO", "no"),
        ("Yesterday", None),
        ("", None),
    ],
)
def test_yes_no_is_the_first_whole_word(prediction: str, choice: str | None) -> None:
    assert m.parse_yes_no(prediction) == choice


@pytest.mark.parametrize(
    ("prediction", "choice"),
    [
        *(
            (text, None)
            for text in ("yes/no", "Yes or no?", "no / yes", "yes|no", '"yes" or "no"', "yes and no", "yes, no")
        ),
        *((text, None) for text in ("It is not possible to say yes or no", "neither yes nor no", "yes, or no")),
        ("Question: Is there a mass? [yes, no]", None),
        ("Question: Is there a mass? [yes, no] Answer: no", "no"),
        ("Answer with yes or no.\nYes", "yes"),
        ("(Yes/No) No, there is none; yes would be wrong", "no"),
        ("Yes, no mass is seen", "yes"),
        ("Yes. No.", "yes"),
        ("No. Yes would need a mass.", "no"),
        ("Yes.\nNo mass elsewhere.", "yes"),
        ("no, or yesterday", "no"),
    ],
)
def test_a_pair_of_yes_and_no_is_no_answer(prediction: str, choice: str | None) -> None:
    assert m.parse_yes_no(prediction) == choice


@pytest.mark.parametrize(
    ("prediction", "choice"),
    [
        ("left lung", "left lung"),
        ("It is the left lung.", "left lung"),  # hides the option "lung" inside it
        ("lung", "lung"),
        ("left lung or heart", None),
        ("bone", None),
    ],
)
def test_an_option_counts_if_it_alone_is_named(prediction: str, choice: str | None) -> None:
    assert m.parse_option(prediction, ("lung", "heart", "left lung")) == choice


@pytest.mark.parametrize("letter", ["A", "B", "C", "D"])
@pytest.mark.parametrize(
    "wording",
    [
        "{}",
        "{}.",
        "({})",
        "{}) left lung",
        "The answer is {}.",
        "Option {} fits best.",
        "{} is correct",
        "It is {}: a mass",
    ],
)
def test_a_letter_is_an_option_in_any_sentence(letter: str, wording: str) -> None:
    assert m.parse_option(wording.format(letter), ("A", "B", "C", "D")) == letter
    assert m.parse_option(wording.format(letter), ("D", "C", "B", "A")) == letter


@pytest.mark.parametrize(
    ("prediction", "choice"),
    [
        ("A mass is seen.", None),
        ("It is a mass in the left lung, so B.", "B"),
        ("There is an A-line.", None),
        ("A and B", None),
        ("the answer is a", "A"),
    ],
)
def test_an_article_is_not_the_letter_a(prediction: str, choice: str | None) -> None:
    assert m.parse_option(prediction, ("A", "B", "C", "D")) == choice


def test_strict_tokens() -> None:
    assert m.strict_tokens("The X-ray: 10,000 cells, 3.5cm; it’s ten") == [
        *("x", "ray", "10000", "cells", "3.5", "cm", "it's", "10")
    ]
    assert m.strict_tokens("T1,T2") == ["t1", "t2"]
    assert m.strict_tokens("A") == ["a"]  # an answer of an article alone is still an answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("−5", -5),
        ("$1,200.50", 1200.5),
        (".5", 0.5),
        ("12%", 12),
        ("7.", 7),
        ("+3", 3),
        (" 3 ", 3),
        ("Five", 5),
        ("3 cm", None),
        ("1e5", None),
        ("1,00", None),
        ("", None),
        ("nan", None),
        ("٣", 3),
        ("9" * 500, None),
    ],
)
def test_a_number_is_read_by_its_value(text: str, value: float | None) -> None:
    assert m.number(text) == value


def test_exact_match_compares_numbers_by_value_and_texts_by_words() -> None:
    assert m.strict_exact("3.50", "3.5") == m.strict_exact("$1,000", "1000") == m.strict_exact("two", "2") == 1.0
    assert (
        m.strict_exact("-5", "5")
        == m.strict_exact("-5", "five")
        == m.strict_exact("3.5", "35")
        == m.strict_exact("5", "five kidneys")
        == 0.0
    )
    assert m.strict_exact("The left lung.", "left lung") == 1.0


def test_the_letter_in_a_name_is_no_article() -> None:
    assert m.strict_exact("hepatitis", "Hepatitis A") == m.strict_exact("vitamin", "vitamin a") == 0.0
    assert m.strict_exact("hepatitis a", "The Hepatitis A.") == m.strict_exact("A mass", "mass") == 1.0
    assert m.strict_tokens("type A, not B") == ["type", "a", "not", "b"]
    assert m.parse_option("Viral hepatitis", ("Hepatitis A", "Gout")) is None
    assert m.parse_option("It is hepatitis A.", ("Hepatitis A", "Gout")) == "Hepatitis A"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("+", "-"), (">5", "<5"), ("", "..."), ("-5 cm", "5 cm"), ("HER2+", "HER2-"), ("> 5 mm", "5 mm")],
)
def test_signs_are_not_dropped(ours: str, theirs: str) -> None:
    assert m.strict_exact(ours, theirs) == m.strict_exact(theirs, ours) == 0.0
    assert m.strict_exact(ours, ours) == m.strict_exact(theirs, theirs) == 1.0


@pytest.mark.parametrize(
    ("ours", "theirs"), [("X-ray", "x ray"), ("lung - left", "lung left"), ("T2-weighted", "T2 weighted")]
)
def test_a_hyphen_is_no_sign(ours: str, theirs: str) -> None:
    assert m.strict_exact(ours, theirs) == 1.0


def test_a_chinese_character_is_a_word() -> None:
    assert m.strict_tokens("左肺T1加权，3.5厘米") == ["左", "肺", "t1", "加", "权", "3.5", "厘", "米"]
    assert m.parse_option("不是，没有异常", ("是", "不是")) == "不是"
    assert m.strict_overlap("在左肺上", "左肺").recall == 1.0


def test_options_of_the_same_words_cannot_be_told_apart() -> None:
    assert m.parse_option("It is -5", ("-5", "5", "7")) is None
    assert m.parse_option("It is 7", ("-5", "5", "7")) == "7"
    assert m.parse_option("<image 1>", ("<image 1>", "<image 1>")) is None


@pytest.mark.parametrize(("ours", "theirs"), [("5.0", "5"), ("$1,000", "1000.00"), (".5", "0.5"), ("-3%", "−3")])
def test_f1_is_1_where_exact_is(ours: str, theirs: str) -> None:
    assert m.strict_exact(ours, theirs) == 1.0
    assert m.strict_overlap(ours, theirs) == m.strict_overlap(theirs, ours) == m.WHOLE


def test_exact_match_and_f1_are_reflexive_and_symmetric(texts: Callable[[int, int], list[str]]) -> None:
    answers = texts(600, 23)
    for ours, theirs in zip(answers, reversed(answers), strict=True):
        assert m.strict_exact(ours, ours) == 1.0
        assert m.strict_exact(ours, theirs) == m.strict_exact(theirs, ours)
        assert m.strict_overlap(ours, theirs).f1 == pytest.approx(m.strict_overlap(theirs, ours).f1)
        for pair in ((ours, theirs), (ours, ours), (ours, f"{ours}.0"), (f" {ours} ", ours)):
            assert m.strict_overlap(*pair) == m.WHOLE or not m.strict_exact(*pair)
        small = m.strict_tokens(ours.lower())  # the marks that make a capital A a name are not in the tokens
        assert m.strict_tokens(" ".join(small)) == small
