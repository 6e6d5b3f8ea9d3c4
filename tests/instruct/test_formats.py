"""LLaVA's JSON in and out; every problem of a file is named at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llavamed.errors import InputError
from llavamed.instruct.formats import from_llava, from_questions, import_file, problems, to_llava, write_llava
from llavamed.records import Conversation, Message, Question, assistant, user, write_jsonl

RECORD: dict[str, Any] = {
    "id": "32432162_F1",
    "image": "32432162_F1.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is shown?"},
        {"from": "gpt", "value": "A CT of a GIST."},
        {"from": "human", "value": "Is it large?"},
        {"from": "gpt", "value": "Yes."},
    ],
}


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text(json.dumps(list(rows)), encoding="utf-8")
    return path


def test_llava_record_is_read_and_written_back_as_it_was() -> None:
    conversation = from_llava(RECORD)
    assert conversation.messages[0] == user("What is shown?", images=1)
    assert to_llava(conversation) == RECORD
    after = {
        **RECORD,
        "conversations": [{"from": "human", "value": "What is shown?\n<image>"}, *RECORD["conversations"][1:]],
    }
    assert from_llava(after).messages[0].content == ({"type": "text", "text": "What is shown?"}, {"type": "image"})
    assert to_llava(from_llava(after)) == after


def test_several_images_and_none_are_read_and_written_back() -> None:
    two = {"id": "a", "image": ["1.png", "2.png"], "conversations": [
        {"from": "human", "value": "<image>\n<image>\nCompare."}, {"from": "gpt", "value": "Equal."}]}  # fmt: skip
    none = {"id": "b", "conversations": [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hello."}]}
    for row in (two, none):
        assert problems(from_llava(row)) == []
        assert to_llava(from_llava(row)) == row


def test_the_misspelt_key_of_the_released_files_is_read() -> None:
    row = {("conversatons" if key == "conversations" else key): value for key, value in RECORD.items()}
    assert from_llava(row) == from_llava(RECORD)


def test_our_conversations_survive_a_round_trip_through_a_llava_file(tmp_path: Path) -> None:
    last = Message("user", ({"type": "text", "text": "What?"}, {"type": "image"}))
    ours = [
        Conversation("a", ("a.png",), (user("What?", images=1), assistant("A cyst."))),
        Conversation("b", ("b.png",), (last, assistant("B."))),
    ]
    assert write_llava(tmp_path / "l.json", ours) == 2
    back = import_file(tmp_path / "l.json", "llava")
    assert [(c.id, c.images, c.messages) for c in back] == [(c.id, c.images, c.messages) for c in ours]


def test_json_lines_and_an_array_are_the_same_file(tmp_path: Path) -> None:
    array = _write(tmp_path / "a.json", RECORD, {**RECORD, "id": 7})
    lines = tmp_path / "b.json"
    lines.write_text("\n" + json.dumps(RECORD) + "\n" + json.dumps({**RECORD, "id": 7}) + "\n")
    assert import_file(array, "llava") == import_file(lines, "llava")
    assert [c.id for c in import_file(array, "llava")] == ["32432162_F1", "7"]


def test_our_own_jsonl_is_imported_as_it_is(tmp_path: Path) -> None:
    ours = [Conversation("a", ("a.png",), (user("What?", images=1), assistant("A cyst.")), {"pair": "a"})]
    write_jsonl(tmp_path / "c.jsonl", ours)
    assert import_file(tmp_path / "c.jsonl", "llavamed") == ours


def test_every_problem_is_listed_with_its_record(tmp_path: Path) -> None:
    first, answer = RECORD["conversations"][:2]
    path = _write(
        tmp_path / "bad.json",
        RECORD,
        {"id": "lost", "image": "x.jpg", "conversations": [{"from": "human", "value": "What?"}, answer]},
        {"id": "mute", "image": "x.jpg", "conversations": [first, {"from": "gpt", "value": " "}]},
        {"id": "order", "image": "x.jpg", "conversations": [answer, first]},
        {"id": "odd", "image": "x.jpg", "conversations": [first, {"from": "nobody", "value": "x"}]},
        {"id": "bare"},
        {"id": "32432162_F1", "image": 3, "conversations": []},
        RECORD,
    )
    with pytest.raises(InputError) as caught:
        import_file(path, "llava")
    for part in (
        "7 problems",
        "record 2 (id 'lost'): 0 image tokens for 1 images",
        "record 3 (id 'mute'): turn 2: empty answer",
        "record 4 (id 'order'): speaker order is assistant, user",
        "record 5 (id 'odd'): turn 2 is from 'nobody'",
        "record 6 (id 'bare'): no list",
        "record 7 (id '32432162_F1'): \"image\" is neither",
        "record 8 (id '32432162_F1'): the id occurs twice",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{", "not JSON"),
        ("", "no conversations"),
        ("[]", "no conversations"),
        ("[3]", "not an object"),
        ("\ufeff", "not"),
    ],
)
def test_a_file_that_is_no_list_of_records_is_an_input_error(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        import_file(tmp_path / "x.json", "llava")


def test_an_absent_file_or_an_unknown_format_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        import_file(tmp_path / "absent.json", "llava")
    with pytest.raises(InputError, match="give llava or llavamed"):
        import_file(_write(tmp_path / "a.json", RECORD), "alpaca")


def test_a_system_turn_cannot_be_written_as_llava() -> None:
    talk = Conversation("s", (), (Message("system", ({"type": "text", "text": "x"},)), user("a"), assistant("b")))
    assert problems(talk) == []
    with pytest.raises(InputError, match="'s'"):
        to_llava(talk)


def test_questions_become_single_turns_with_the_reference_as_answer() -> None:
    item = Question("q1", "x.png", "Is it a cyst?", "yes", True, ("yes", "no"), {"organ": "liver"})
    (talk,) = from_questions([item], ask=lambda question: f"{question.question} Answer yes or no.")
    assert talk.messages == (user("Is it a cyst? Answer yes or no.", images=1), assistant("yes"))
    assert (talk.id, talk.images, problems(talk)) == ("q1", ("x.png",), [])
    assert talk.source["organ"] == "liver"
