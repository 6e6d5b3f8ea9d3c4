"""The nouns survive a round trip through JSON lines, and damage is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavamed.errors import InputError
from llavamed.records import (
    Conversation,
    Mention,
    Pair,
    Prediction,
    Question,
    assistant,
    read_conversations,
    read_jsonl,
    user,
    write_jsonl,
)

RECORDS = [
    Pair("PMC1_F1", "PMC1_F1.jpg", "A caption.", mentions=(Mention("See Fig. 1.", "See Fig. 1.", "Results", "AB"),)),
    Conversation("1", ("PMC1_F1",), (user("What is it?", images=1), assistant("CT.")), {"teacher": "template"}),
    Question("7", "a.png", "Is it CT?", "yes", True, ("yes", "no"), {"organ": "CHEST"}),
    Question("8", "a.png", "Which?", "b", True, ("a", "b"), letter="B", answers=("b", "c"), more_images=("b.png",)),
    Prediction("7", "Yes.", control="blank"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_survives_json(record: Pair, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [record])
    (row,) = read_jsonl(tmp_path / "r.jsonl")
    assert type(record).from_json(row) == record


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(InputError, match=r"r\.jsonl:2"):
        list(read_jsonl(tmp_path / "r.jsonl"))


def test_a_record_that_is_no_conversation_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"id": "seven", "images": []}\n')
    with pytest.raises(InputError, match="seven"):
        list(read_conversations(tmp_path / "r.jsonl"))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list(read_jsonl(tmp_path / "absent.jsonl"))


GOOD = {"id": "7", "images": ["a.png"], "messages": [{"role": "user", "content": [{"type": "image"}]}]}


@pytest.mark.parametrize(
    "change",
    [
        {"images": "x.png"},
        {"images": [3]},
        {"messages": [{"role": "human", "content": "hi"}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        {"messages": ["hi"]},
    ],
)
def test_a_malformed_conversation_names_the_record(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="record '7'"):
        Conversation.from_json({**GOOD, **change})


def test_content_as_plain_text_is_read_as_openais_clients_write_it() -> None:
    row = {**GOOD, "messages": [{"role": "user", "content": "hi"}]}
    assert Conversation.from_json(row).messages[0] == user("hi")


@pytest.mark.parametrize(
    "change",
    [
        {"answer": 3},
        {"closed": "false"},
        {"question": None},
        {"groups": []},
        {"options": "yes"},
        {"letter": 1},
        {"more_images": "b.png"},
    ],
)
def test_a_malformed_question_names_itself(change: dict[str, object]) -> None:
    good = {"id": "7", "image": "a.png", "question": "Is it CT?", "answer": "yes", "closed": True}
    with pytest.raises(InputError, match="question '7'"):
        Question.from_json({**good, **change})


def test_a_question_of_before_lettered_options_is_still_read() -> None:
    row = {
        "id": "7",
        "image": "a.png",
        "question": "Is it CT?",
        "answer": "yes",
        "closed": True,
        "options": ["yes", "no"],
    }
    question = Question.from_json(row)
    assert (question.images, question.references, question.letter) == (("a.png",), ("yes",), "")


def test_letters_are_those_of_the_options_that_are_offered() -> None:
    question = Question("1", "", "Which?", "c", True, ("a", "", "c"), letter="C")
    assert question.lettered == {"A": "a", "C": "c"}
    assert question.images == ()


def test_a_file_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes('{"a": "ä"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"r\.jsonl:1: not UTF-8"):
        list(read_jsonl(tmp_path / "r.jsonl"))
