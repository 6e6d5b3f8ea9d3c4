"""MMMU: the official evaluator on a published model's outputs, its parser, and what strict makes of it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llavamed.evaluate.metrics import mmmu as m

OPTIONS = {"A": "liver", "B": "spleen", "C": "left kidney", "D": "right kidney"}


@pytest.fixture(scope="module")
def published(shared_data: Path) -> list[tuple[str, m.Item]]:
    """The validation outputs of LLaVA-1.5-13B that the benchmark's authors published, in the official order."""
    files = sorted((shared_data / "mmmu" / "llava1.5_13b").glob("*/output.json"))
    rows = [row for path in files for row in json.loads(path.read_text())]
    return [(row["id"], m.Item(row["response"], row["answer"], row.get("index2ans", {}))) for row in rows]


def test_the_published_outputs_score_330_of_900_and_58_of_150_medical(published: list[tuple[str, m.Item]]) -> None:
    scores = m.official_scores([item for _, item in published])
    medical = [score for score, (name, _) in zip(scores, published, strict=True) if m.subject(name) in m.MEDICAL]
    assert (sum(scores), len(scores)) == (330, 900)
    assert (sum(medical), len(medical)) == (58, 150)
    assert sum(m.official_scores([item for name, item in published if m.subject(name) in m.MEDICAL])) == 58


def test_the_parsed_outputs_score_the_same_against_the_answer_key(shared_data: Path) -> None:
    key = json.loads((shared_data / "mmmu" / "answer_dict_val.json").read_text())
    given = json.loads((shared_data / "mmmu" / "llava1.5_13b" / "total_val_output.json").read_text())
    letters = dict.fromkeys("ABCDEFGHI", "")
    items = [
        m.Item(text, key[name]["ground_truth"], letters if key[name]["question_type"] == "multiple-choice" else {})
        for name, text in given.items()
    ]
    assert sum(m.official_scores(items)) == 330


def test_every_golden_value_of_the_original_parsers(golden: Callable[[str], Any]) -> None:
    rows = golden("mmmu")
    for row in rows["mcq"]:
        assert (m.parse_choice(row["response"], rows["options"]) or "RANDOM") == row["official"]
    for row in rows["open"]:
        assert sorted(map(str, m.parse_open(row["response"]))) == row["parsed"]
        answers = [row["gold"]] if isinstance(row["gold"], str) else row["gold"]
        assert m.official_open(row["response"], answers) == float(row["correct"])


def test_parsers_and_draws_are_those_of_the_original_code_on_random_answers(
    definitions: Callable[[str, str], Any], texts: Callable[[int, int], list[str]]
) -> None:
    theirs = definitions("lm_eval", "tasks/mmmu/utils.py")  # a verbatim copy of the benchmark's eval_utils.py
    theirs.parse_multi_choice_response.__globals__["random"].seed(42)
    answers = texts(5000, 53)
    expected = []
    for text, gold in zip(answers, reversed(answers), strict=True):
        assert sorted(map(repr, m.parse_open(text))) == sorted(map(repr, theirs.parse_open_response(text)))
        assert m.official_open(text, [gold]) == float(theirs.eval_open([gold], theirs.parse_open_response(text)))
        expected.append(float(theirs.parse_multi_choice_response(text, list(OPTIONS), OPTIONS) == "C"))
    items = [m.Item(text, "C", OPTIONS) for text in answers]
    assert m.official_scores(items) == expected
    assert m.official_scores(items) == expected  # seeded anew each time


def test_unread_answers_are_drawn_in_order_from_a_generator_seeded_with_42() -> None:
    items = [m.Item("?", "A", OPTIONS), m.Item("B", "B", OPTIONS), m.Item("C. left kidney", "C", OPTIONS)]
    chance = random.Random(42)
    assert m.official_scores(items) == [
        float(chance.choice("ABCD") == "A"),
        1.0,
        float(chance.choice("ABCD") == "C"),
    ]


def test_key_phrases_are_what_follows_a_key_and_an_equals_sign_on_the_last_line_only() -> None:
    assert m.parse_open("Thus x = 7 volts") == ["7 volts", 7.0]
    assert m.parse_open("Thus x = 7 volts\nfinal") == ["x = 7 volts", 7.0]  # a key needs its blank
    assert m.parse_open("It is blue. So It is red.") == ["red"]
    assert m.parse_open("b") == [" b", "b "]


def test_numbers_are_found_as_by_the_patterns_that_try_every_digit(texts: Callable[[int, int], list[str]]) -> None:
    plain = [re.compile(pattern.pattern.replace(r"(?<!\d)", "")) for pattern in m._NUMBERS]
    rng = random.Random(59)
    answers = texts(3000, 61) + ["".join(rng.choices("0123456789,.-eE x", k=24)) for _ in range(20_000)]
    for text in answers:
        for ours, theirs in zip(m._NUMBERS, plain, strict=True):
            assert ours.findall(text) == theirs.findall(text)


def test_strict_reads_what_the_script_draws_and_wants_open_answers_exact() -> None:
    assert m.strict_score(m.Item("C. left kidney", "C", OPTIONS)) == 1.0
    assert m.parse_choice("C. left kidney", OPTIONS) is None
    assert m.strict_score(m.Item("no idea", "C", OPTIONS)) == 0.0
    assert m.parse_strict(m.Item("no idea", "C", OPTIONS)) is None
    assert (m.official_open("Step b", ["B"]), m.strict_score(m.Item("Step b", "B", {}))) == (1.0, 0.0)
    assert m.strict_score(m.Item("The answer is: **24.320**", ["24.32"], {})) == 1.0
    assert m.strict_score(m.Item("-5", ["5", "five"], {})) == 0.0
    assert m.strict_score(m.Item("", ["5"], {})) == 0.0


@pytest.mark.parametrize(
    ("response", "read", "credit"),
    [
        ("\\boxed{24.32}", "24.32", 1.0),
        ("So $x = \\boxed{24.320}$ volts", "24.320", 1.0),
        ("\\boxed{3}, no: the answer is \\boxed { 24.32 }.", "24.32", 1.0),
        ("$24.32$", "$24.32$", 1.0),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", 0.0),
        ("\\boxed{}", "\\boxed{}", 0.0),
        ("\\boxed{24.32", "\\boxed{24.32", 0.0),
        *((text, text, 0.0) for text in ("It is 24.32", "x = 24.32", "24.32 V")),  # exact is exact
    ],
)
def test_a_boxed_open_answer_is_what_the_box_holds(response: str, read: str, credit: float) -> None:
    item = m.Item(response, ["24.32"], {})
    assert (m.parse_strict(item), m.strict_score(item)) == (read, credit)


def test_the_domains_hold_thirty_subjects() -> None:
    subjects = [name for names in m.DOMAINS.values() for name in names]
    assert len(set(subjects)) == len(subjects) == 30
    assert [m.subject(id) for id in ("validation_Art_Theory_2", "dev_Art_10")] == ["Art_Theory", "Art"]
