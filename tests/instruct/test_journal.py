"""Answers that survive the process that asked for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavamed.errors import InputError
from llavamed.instruct.journal import Journal


def test_an_answer_is_known_to_the_next_process_and_only_to_the_same_request(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    assert first.answer({"seed": 1}) is None
    first.keep({"seed": 1}, "k", "größer\nals")
    assert first.answer({"seed": 1}) == Journal(path).answer({"seed": 1}) == "größer\nals"
    assert Journal(path).answer({"seed": 2}) is None


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_cut_last_line_is_dropped_and_writing_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    for seed in (1, 2):
        Journal(path).keep({"seed": seed}, "k", f"answer {seed}")
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path)
    assert (again.answer({"seed": 1}), again.answer({"seed": 2})) == ("answer 1", None)
    again.keep({"seed": 2}, "k", "second")
    assert [Journal(path).answer({"seed": seed}) for seed in (1, 2)] == ["answer 1", "second"]


def test_another_file_by_that_name_is_an_input_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).keep({"seed": 1}, "k", "answer")
    path.write_text(path.read_text() + '{"other": 1}\n')
    with pytest.raises(InputError, match=r"journal\.jsonl:2: not a line of a journal"):
        Journal(path)


def test_further_fields_stand_in_the_line_and_come_back(tmp_path: Path) -> None:
    Journal(tmp_path / "j").keep({"a": 1}, "pair", "text", {"tokens": [3, 4]})
    again = Journal(tmp_path / "j")
    row = again.row({"a": 1})
    assert row is not None
    assert (row["answer"], row["tokens"]) == ("text", [3, 4])
    assert again.row({"a": 2}) is None
