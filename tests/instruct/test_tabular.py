"""Tables of image, question and answer, as people keep them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from llavamed.errors import InputError
from llavamed.instruct.formats import import_file, problems
from llavamed.records import assistant, user


def _csv(path: Path, *rows: tuple[str, ...], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize(
    ("name", "head", "delimiter"),
    [
        ("a.csv", ("image", "question", "answer"), ","),
        ("a.csv", ("Image_Name", "Question", "Label"), ";"),
        ("a.tsv", ("img", "query", "response"), "\t"),
    ],
)
def test_usual_column_names_and_delimiters_are_understood(
    tmp_path: Path, name: str, head: tuple[str, ...], delimiter: str
) -> None:
    path = _csv(tmp_path / name, head, ("a.png", "Is it large, or not?", "No;\nsmall."), delimiter=delimiter)
    (talk,) = import_file(path, "table")
    assert talk.messages == (user("Is it large, or not?", images=1), assistant("No;\nsmall."))
    assert (talk.images, talk.id, problems(talk)) == (("a.png",), "a-1", [])


def test_json_and_json_lines_are_tables_too(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "question": "How many?", "answer": 2, "id": 7},
        {"image": "b.png", "q": 1, "question": "What?", "answer": "x"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    array, lines = (import_file(tmp_path / name, "table") for name in ("a.json", "a.jsonl"))
    assert [(c.id, c.messages) for c in array] == [(c.id, c.messages) for c in lines]
    assert [c.id for c in array] == ["7", "a-2"]
    assert array[0].messages[1].text == "2"


ROWS = (
    {"image": "a.png", "question": "What?", "answer": "A cyst."},
    {"image": "b.png", "question": "Where?", "answer": "Left."},
)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("tree", "ids"),
    [
        ({"info": {"version": 1}, "data": ROWS, "splits": ["train"]}, ["a-1", "a-2"]),
        ({"x": ROWS[0], "y": ROWS[1]}, ["x", "y"]),
        (ROWS[0], ["a-1"]),
    ],
)
def test_json_is_read_however_it_wraps_its_records(
    tmp_path: Path, tree: object, ids: list[str], indent: int | None
) -> None:
    (tmp_path / "a.json").write_text("\n" + json.dumps(tree, indent=indent))
    talks = import_file(tmp_path / "a.json", "table")
    assert [talk.id for talk in talks] == ids
    assert [talk.messages[1].text for talk in talks] == [row["answer"] for row in ROWS[: len(ids)]]


def test_a_problem_inside_a_wrapped_list_has_its_line(tmp_path: Path) -> None:
    rows = [*ROWS, {"image": "c.png", "question": "Why?", "answer": ""}]
    for tree, lines in (({"info": 1, "data": rows}, (14,)), (dict(enumerate(rows)), (12,))):
        (tmp_path / "a.json").write_text(json.dumps(tree, indent=1))
        with pytest.raises(InputError, match=rf"1 problem, .*line {lines[0]}: empty answer"):
            import_file(tmp_path / "a.json", "table")


def test_of_two_lists_none_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(InputError, match="'train' and 'test' could each be the records"):
        import_file(tmp_path / "a.json", "table")


def test_other_names_are_given(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", ("scan", "q", "a"), ("a.png", "What?", "A cyst."))
    with pytest.raises(InputError, match=r"no column for image, question, answer among 'scan', 'q', 'a'.*--columns"):
        import_file(path, "table")
    names = {"image": "scan", "question": "q", "answer": "a"}
    assert import_file(path, "table", columns=names)[0].images == ("a.png",)
    with pytest.raises(InputError, match="not one of image"):
        import_file(path, "table", columns={**names, "picture": "scan"})


def test_rows_of_one_conversation_become_its_turns(tmp_path: Path) -> None:
    path = _csv(
        tmp_path / "a.csv",
        ("conversation", "image", "question", "answer"),
        ("t", "a.png", "What?", "A cyst."),
        ("u", "b.png", "Where?", "Left."),
        ("t", "a.png", "Large?", "No."),
    )
    talks = {talk.id: talk for talk in import_file(path, "table")}
    assert [m.text for m in talks["t"].messages] == ["What?", "A cyst.", "Large?", "No."]
    assert [m.num_images for m in talks["t"].messages] == [1, 0, 0, 0]
    assert problems(talks["t"]) == problems(talks["u"]) == []


def test_a_mark_in_the_question_says_where_the_image_stands(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", ("image", "question", "answer"), ("a.png", "What is it? <image>", "A cyst."))
    assert [part["type"] for part in import_file(path, "table")[0].messages[0].content] == ["text", "image"]


def test_every_problem_is_listed_with_its_line(tmp_path: Path) -> None:
    path = _csv(
        tmp_path / "a.csv",
        ("image", "question", "answer", "id"),
        ("a.png", "What\nis it?", "A cyst.", "1"),
        ("a.png", "What?", " ", "2"),
        ("", "What?", "A cyst.", "3"),
        ("gone.png", "What?", "A cyst.", "4"),
        ("a.png", "<image> What? <image>", "A cyst.", "5"),
        ("a.png", "What?", "A cyst."),
        ("a.png", "What?", "A cyst.", "1"),
    )
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        import_file(path, "table", tmp_path)
    for part in (
        "6 problems",
        "line 4: empty answer",
        "line 5: empty image",
        "line 6 (id '4'): no image 'gone.png'",
        "line 7 (id '5'): turn 1: <image> written out in the text",
        "line 8: 3 cells under 4 column names",
        "line 9 (id '1'): the id occurs twice",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_quote_that_is_never_closed_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image,question,answer\na.png,"What?,A cyst.\n')
    with pytest.raises(InputError, match=r"a\.csv:2: not a table"):
        import_file(tmp_path / "a.csv", "table")


def test_a_head_alone_holds_no_conversation(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no conversations"):
        import_file(_csv(tmp_path / "a.csv", ("image", "question", "answer")), "table")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_an_apostrophe_is_a_letter_and_only_a_line_break_ends_a_row(tmp_path: Path, delimiter: str) -> None:
    rows = [
        ("image", "question", "answer"),
        ("a.png", "'What' is it?", "'A cyst'"),
        ("b.png", "Is it Crohn's, or not?", "It's \u2028Crohn's; \x0bno\x85 doubt."),
        ("c.png", 'The "lesion"?', "'"),
    ]
    talks = import_file(_csv(tmp_path / "a.csv", *rows, delimiter=delimiter), "table")
    assert [(t.images[0], *(m.text for m in t.messages)) for t in talks] == rows[1:]


def test_a_blank_after_the_comma_is_not_part_of_a_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image, question, answer\na.png, "Is it large, or not?", No\n')
    (talk,) = import_file(tmp_path / "a.csv", "table")
    assert [m.text for m in talk.messages] == ["Is it large, or not?", "No"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_number_that_is_none_is_nothing_and_no_answer(tmp_path: Path, name: str) -> None:
    rows = [{**ROWS[0], "organ": float("nan")}, {**ROWS[1], "answer": float("nan")}]
    text = json.dumps(rows[1]) if name == "a.json" else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text)
    line = 1 if name == "a.json" else 2
    with pytest.raises(InputError, match=f"1 problem, .*line {line}: empty answer"):
        import_file(tmp_path / name, "table")
