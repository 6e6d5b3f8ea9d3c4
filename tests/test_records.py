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
