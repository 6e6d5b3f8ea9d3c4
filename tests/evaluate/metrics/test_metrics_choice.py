"""Multiple choice: what each official reader makes of an answer, and what strict accepts as a choice."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import pytest

from llavamed.evaluate.metrics import choice as m

OPTIONS = ("liver", "spleen", "left kidney", "right kidney")


@pytest.mark.parametrize("letter", ["A", "B", "C", "D"])
@pytest.mark.parametrize(
    "wording",
    [
        *("{}", "{}.", "({})", "{})", "**{}**", "[{}]", "\\boxed{{{}}}"),
        *("{}. something", "{}) something", "{}: something", "It shows a mass.\n{}. something"),
        *("The answer is {}.", "the answer is ({}), not (E)", "Answer: {}", "ANSWER: {}", "The answer is\n\n{}"),
        *("The answer would be option {} here", "Option {} fits best", "I choose {}", "It's {}.", "so it is {}"),
        *("{} is correct", "{}, since the border is sharp", "The finding is {} because of its shape"),
        *("(A) one\n(B) two\n(C) three\n(D) four\nThe answer is {}",),
    ],
)
def test_a_stated_letter_is_the_choice(letter: str, wording: str) -> None:
    assert m.parse_choice(wording.format(letter), OPTIONS) == letter
    assert m.strict_choice(wording.format(letter), OPTIONS, letter) == 1.0


@pytest.mark.parametrize("letter", ["a", "b", "c", "d"])
def test_a_small_letter_is_a_choice_only_where_nothing_follows(letter: str) -> None:
    assert m.parse_choice(letter, OPTIONS) == m.parse_choice(f"({letter})", OPTIONS) == letter.upper()
    assert m.parse_choice(f"the answer is {letter}.", OPTIONS) == letter.upper()
    assert m.parse_choice(f"the answer is {letter} mass", OPTIONS) is None


@pytest.mark.parametrize(
    ("prediction", "choice"),
    [
        ("the left kidney", "C"),
        ("It shows the Right Kidney.", "D"),
        ("the left kidney, not the right kidney", None),
        ("the left kidney rather than the right kidney, so C", "C"),
        ("It is a mass in the liver", "A"),
        ("B, the liver", None),  # letter and text disagree
        ("B, since the liver is normal", "B"),  # a reason may name the others
        ("A, since the liver is large", "A"),
    ],
)
def test_an_option_is_named_by_its_words(prediction: str, choice: str | None) -> None:
    assert m.parse_choice(prediction, OPTIONS) == choice


@pytest.mark.parametrize(
    "prediction",
    [
        *("", "?", "no idea", "A mass is seen", "B or C", "Both A and B", "It is not B", "It isn't B"),
        *(
            "vitamin D deficiency",
            "hepatitis B",
            "B cells",
            "a B-line",
            "(E)",
            "I think so",
            "Z",
            "The answer is (A) or (B)",
        ),
    ],
)
def test_no_choice_and_several_are_parse_failures_and_wrong(prediction: str) -> None:
    assert m.parse_choice(prediction, OPTIONS) is None
    assert not any(m.strict_choice(prediction, OPTIONS, letter) for letter in "ABCD")


@pytest.mark.parametrize(
    ("prediction", "choice"),
    [
        *((text, None) for text in ("Not (A).", "(A) is incorrect.", "It is not option B", "C is wrong", "not A or B")),
        *(
            (text, None)
            for text in ("The answer is not B", "**B** is not correct", "neither A nor B", "D cannot be right")
        ),
        ("(A) is wrong, (B) is right", "B"),
        ("not (A) but (C)", "C"),
        ("It isn't option A, it is option D.", "D"),
        ("A is not wrong", "A"),
    ],
)
def test_what_is_denied_is_not_chosen(prediction: str, choice: str | None) -> None:
    assert m.parse_choice(prediction, OPTIONS) == choice


@pytest.mark.parametrize("letter", ["A", "B", "C", "D"])
@pytest.mark.parametrize(
    "wording",
    [
        *(
            "{}\n\nThe liver is visible.",
            "{}\n\nExplanation: The image shows the liver.",
            "{}\n\nBecause",
            "{}\r\nliver",
        ),
        *("{}\n\nExplanation: A is the liver", "{}  \n(A) is too small", "{}, because the liver (A) is elsewhere"),
        *("**{}**\n\nThe spleen is normal.", "The liver is large, the spleen is not.\n\n{}", "{}.\nA and B are normal"),
        *("<think>A. liver is wrong</think>{}", "<think>It is B. Or (A)?</think>\n\n({}) as said"),
        *("the answer is clearly {}", "The answer is most likely ({}).", "The answer is {}\n\nthe liver is normal"),
    ],
)
def test_a_letter_on_its_line_or_with_its_reason_is_the_choice_whatever_is_explained(letter: str, wording: str) -> None:
    assert m.parse_choice(wording.format(letter), OPTIONS) == letter


@pytest.mark.parametrize(
    ("prediction", "choice"),
    [
        ("The answer is not A but C", "C"),
        ("not A, but rather C", "C"),
        ("anything but C", None),
        ("A\nB\nC\nD", None),  # the list of letters is no choice
        ("A\nB\nC\nD\nThe answer is B", "B"),
        ("A\n\nOn second thought, the answer is C", "C"),
        ("A, B and C are normal", None),
        ("<think>B</think>", None),
        ("the answer is clearly a mass", None),
    ],
)
def test_lines_of_letters_thoughts_and_denials(prediction: str, choice: str | None) -> None:
    assert m.parse_choice(prediction, OPTIONS) == choice


@pytest.mark.parametrize(
    ("prediction", "choice"),
    [
        ("The correct answer is A strong base.", "C"),
        ("The answer is A strong base, as it takes protons", "C"),
        ("The answer is a weak acid", "B"),
        ("The answer is B cells.", "D"),
        ("The answer is B.", "B"),
        ("The answer is A because it is salt", "A"),
        ("The answer is A medium one", None),
    ],
)
def test_an_options_text_behind_the_answer_is_wins_over_a_letter(prediction: str, choice: str | None) -> None:
    assert m.parse_choice(prediction, ("salt", "A weak acid", "A strong base", "B cells")) == choice
    assert m.parse_choice("The answer is A strong base.", ("salt", "weak acid", "strong base")) == "C"


def test_numbers_are_told_apart_by_their_sign() -> None:
    assert m.parse_choice("-5", ("5", "-5", "0")) == "B"
    assert m.parse_choice("5.", ("5", "-5", "0")) == "A"
    assert m.parse_choice("It is -5", ("5", "-5", "0")) is None  # words do not hold the sign


def test_options_of_the_same_text_are_the_same_choice_and_a_wrong_letter_is_an_error() -> None:
    assert m.strict_choice("B", ("lung", "heart", "heart"), "C") == 1.0
    assert m.official_nearest("heart", ("lung", "heart", "heart"), "C") == 1.0
    for score in (m.strict_choice, m.official_nearest, m.official_vlmevalkit):
        with pytest.raises(ValueError, match="must be the letter of one of the 4 options"):
            score("heart", OPTIONS, "E")


def test_the_nearest_option_is_the_first_of_the_most_similar_by_difflib(texts: Callable[[int, int], list[str]]) -> None:
    for text in texts(1500, 73):
        ratios = [difflib.SequenceMatcher(None, option, text).ratio() for option in OPTIONS]
        expected = m.LETTERS[ratios.index(max(ratios))] if max(ratios) else None
        assert m.nearest_option(text, OPTIONS) == expected
    assert m.nearest_option("B", ("ribs", "Bone")) == "B"
    assert m.official_nearest("xyz", ("ab", "cd"), "A") == 0.0  # nothing in common with any: a miss


def test_pmc_vqa_reads_the_last_character() -> None:
    options = (" A:liver ", " B:spleen ", " C:left kidney ", " D:right kidney ")
    assert m.official_pmc_vqa("The answer is: B", options, "B") == 1.0
    assert m.official_pmc_vqa("B, I think", options, "B") == 0.0  # "k" is in the kidneys only
    assert m.official_pmc_vqa("", options, "A") == 0.0


@pytest.mark.parametrize(
    ("prediction", "choice"),
    [
        ("B", "B"),
        ("(C) left kidney", "C"),
        ("A mass in the spleen", "A"),
        ("Either A or B", None),
        ("the SPLEEN", "B"),
        ("the spleen, not the liver", None),
        ("Cannot determine the answer: B", None),
        ("Z", None),
        ("Failed to obtain answer via API: B", None),
        ("Failed to obtain answer via API: spleen", "B"),
    ],
)
def test_vlmevalkit(prediction: str, choice: str | None) -> None:
    assert m.parse_vlmevalkit(prediction, OPTIONS) == choice
    assert m.official_vlmevalkit(prediction, OPTIONS, "B") == float(choice == "B")


def test_the_likeliest_option_is_the_first_of_equals() -> None:
    assert m.official_likelihood([-2.0, -1.0, -1.0, -3.0], "B") == 1.0
    assert m.official_likelihood([-2.0, -1.0, -1.0, -3.0], "C") == 0.0
    assert m.official_likelihood([], "A") == 0.0


def test_rotating_the_options_rotates_a_choice_made_by_text_and_not_one_made_by_letter() -> None:
    for shift in range(4):
        rotated = OPTIONS[shift:] + OPTIONS[:shift]
        assert rotated[m.LETTERS.index(m.parse_choice("the spleen", rotated) or "Z")] == "spleen"
        assert m.parse_choice("B", rotated) == "B"
