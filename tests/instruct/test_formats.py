"""LLaVA's JSON in and out; every problem of a file is named at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llavamed.errors import InputError
from llavamed.instruct.export import export
from llavamed.instruct.formats import (
    from_llava,
    from_questions,
    import_file,
    problems,
    to_llava,
    to_strings,
)
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
    """An array as an editor keeps it: a record a line, from the second line on."""
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
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
    write_jsonl(tmp_path / "ours.jsonl", ours)
    assert export(tmp_path / "ours.jsonl", tmp_path / "l.json", "llava") == (2, 0)
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
        "line 3 (id 'lost'): 0 image tokens for 1 images",
        "line 4 (id 'mute'): turn 2: empty answer",
        "line 5 (id 'order'): speaker order is assistant, user",
        "line 6: (id 'odd'): turn 2 is from 'nobody'",
        "line 7: (id 'bare'): no list",
        "line 8: (id '32432162_F1'): \"image\" is neither",
        "line 9 (id '32432162_F1'): the id occurs twice",
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
        ("\ufeff", "no conversations"),
    ],
)
def test_a_file_that_is_no_list_of_records_is_an_input_error(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        import_file(tmp_path / "x.json", "llava")


def test_an_absent_file_or_an_unknown_format_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        import_file(tmp_path / "absent.json", "llava")
    with pytest.raises(InputError, match="give one of llava, llavamed, table"):
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


def test_a_record_over_many_lines_is_named_by_its_first(tmp_path: Path) -> None:
    bad = {**RECORD, "id": "bad", "image": "a.png", "conversations": RECORD["conversations"][:1]}
    path = tmp_path / "pretty.json"
    path.write_text(json.dumps([RECORD, bad], indent=2), encoding="utf-8")
    with pytest.raises(InputError, match=r"line 24 \(id 'bad'\): speaker order"):
        import_file(path, "llava")
    assert path.read_text().split("\n")[23] == "  {"


def test_a_broken_line_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(RECORD) + '\n{"id": \n[1]\n' + "[" * 3000 + "\n")
    with pytest.raises(InputError) as caught:
        import_file(path, "llava")
    for part in (
        "3 problems",
        "line 2: not JSON",
        "line 3: a list, not an object",
        "line 4: not JSON (nested too deep",
    ):
        assert part in str(caught.value)


def test_images_are_looked_for_where_they_should_be(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / RECORD["image"]).write_bytes(b"x")
    path = _write(
        tmp_path / "a.json", RECORD, {**RECORD, "id": "b", "image": "gone.jpg"}, {**RECORD, "id": "c", "image": "."}
    )
    with pytest.raises(InputError, match=r"2 problems.*line 3 \(id 'b'\): no image 'gone.jpg' in .*line 4"):
        import_file(path, "llava", tmp_path / "images")
    assert len(import_file(_write(tmp_path / "b.json", RECORD), "llava", tmp_path / "images")) == 1
    with pytest.raises(InputError, match="no such folder"):
        import_file(path, "llava", tmp_path / "absent")


def test_messages_with_marks_in_their_texts_are_read_and_written(tmp_path: Path) -> None:
    row = {
        "id": "a",
        "messages": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cyst."}],
        "images": ["a.png"],
    }
    (talk,) = import_file(_write(tmp_path / "a.json", row), "llavamed")
    assert talk == Conversation("a", ("a.png",), (user("What?", images=1), assistant("A cyst.")))
    assert to_strings(talk) == row


def test_rows_of_other_trainers_need_no_id(tmp_path: Path) -> None:
    """As ms-swift's and LLaMA-Factory's documentation write them."""
    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cyst."}]
    text = [{"role": "user", "content": "What is a cyst?"}, turns[1]]
    path = tmp_path / "swift.jsonl"
    rows: list[dict[str, Any]] = [
        {"messages": turns, "images": ["a.png"]},
        {"messages": turns, "images": "b.png"},
        {"messages": text},
        {"messages": turns, "images": ["c.png"], "id": 7},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    talks = import_file(path, "llavamed")
    assert [talk.id for talk in talks] == ["swift-1", "swift-2", "swift-3", "7"]
    assert [talk.images for talk in talks] == [("a.png",), ("b.png",), (), ("c.png",)]
    assert talks[0].messages == (user("What is it?", images=1), assistant("A cyst."))
    path.write_text(json.dumps({"messages": turns, "images": ["a.png"], "id": [1]}) + "\n")
    with pytest.raises(InputError, match=r"line 1: .*the id must be text"):
        import_file(path, "llavamed")
