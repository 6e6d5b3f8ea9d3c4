"""Other tools' files: written as they write them, read back, matched to the questions or refused."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llavamed.errors import InputError
from llavamed.evaluate import results
from llavamed.evaluate.results import Answer
from llavamed.records import Question

QUESTIONS = [
    Question(f"q{i}", f"{i % 3}.png", text, "yes", True)
    for i, text in enumerate(("Is there a nodule?", "Is it a CT?", "Is there a nodule?", "Is it a CT scan?"))
]
TEXTS = ["Yes.", "No", "", "None"]

# two lines that lmms-eval 0.7.3 wrote for a task of ours with --log_samples (token_counts shortened)
LMMS_EVAL = r"""
{"doc_id": 0, "target": "no", "filtered_resps": "The opacity is on the left side.", "token_counts": [null],
 "doc_hash": "74234e98", "input_media": ["phantom-00023.png"], "right": 0.0,
 "input": "Does the opacity look large?\nAnswer the question using a single word or phrase."}
{"doc_id": 1, "target": "large", "token_counts": [null], "doc_hash": "74234e98",
 "filtered_resps": "[LMMS_EVAL_REQUEST_FAILED after 5 retries] Error code: 404 - no model",
 "input_media": ["phantom-00022.png"], "right": 0.0,
 "input": "Would you call the nodule small or large?\nAnswer the question using a single word or phrase."}
""".replace("\n ", " ").strip()


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_lmms_eval_wrote_is_read_and_its_failure_mark_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(LMMS_EVAL)
    first, second = results.read(tmp_path / "s.jsonl")
    assert (first.text, first.failed, first.shown) == ("The opacity is on the left side.", "", ("phantom-00023.png",))
    assert second.text == ""
    assert second.failed.startswith("[LMMS_EVAL_REQUEST_FAILED after 5 retries] Error code: 404")
    questions = [
        Question("a", "phantom-00022.png", "Would you call the nodule small or large?", "large", False),
        Question("b", "phantom-00023.png", "Does the opacity look large?", "no", True),
    ]
    predictions, how = results.match([first, second], questions, "s")
    assert how == "by the text of the question and the name of the image"
    assert [(p.id, p.text) for p in predictions] == [("a", ""), ("b", "The opacity is on the left side.")]
    assert predictions[0].failed


@pytest.mark.parametrize(
    "row",
    [
        {"filtered_resps": "Yes"},
        {"filtered_resps": ["yes"], "resps": ["Yes"]},
        {"filtered_resps": "yes", "resps": [["Yes"]]},
    ],
)
def test_every_wrapping_of_an_lmms_eval_response_is_unwrapped_to_the_models_words(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    (answer,) = results.read(lines(tmp_path / "s.jsonl", [{"doc_id": 7, "target": "x", "input": "Q", **row}]))
    assert answer == Answer(("7",), "Yes", "", "Q")


def test_likelihoods_are_refused_with_the_row(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", [{"doc_id": 0, "resps": [[-1.5, False], [-0.5, True]]}])
    with pytest.raises(InputError, match="row 1: list where one generated answer belongs"):
        results.read(path)


def test_the_data_sets_own_id_in_a_tasks_record_comes_before_the_order(tmp_path: Path) -> None:
    """SLAKE's task logs {"id": qid} under each metric; doc_id counts the rows of another order."""
    rows = [
        {"doc_id": n, "filtered_resps": TEXTS[i], "input": QUESTIONS[i].question, "accuracy": {"id": f"q{i}"}}
        for n, i in enumerate((2, 0, 3, 1))
    ]
    predictions, how = results.match(results.read(lines(tmp_path / "s.jsonl", rows)), QUESTIONS, "s")
    assert how == "by id"
    assert [p.text for p in predictions] == TEXTS


def frame() -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(
        {
            "index": [f"q{i}" for i in range(4)],
            "question": [q.question for q in QUESTIONS],
            "answer": ["Yes"] * 4,  # beside a prediction this is the reference
            "A": ["x"] * 4,
            "prediction": ["Yes.", "Failed to obtain answer via API. ", "", "None"],
        }
    )


def as_xlsx(path: Path) -> None:
    pytest.importorskip("openpyxl")
    pytest.importorskip("xlsxwriter")
    import pandas

    options = {"options": {"strings_to_formulas": False}}
    with pandas.ExcelWriter(path, engine="xlsxwriter", engine_kwargs=options) as writer:
        frame().to_excel(writer, index=False)


def as_tsv(path: Path) -> None:
    import csv

    frame().to_csv(path, sep="\t", index=False, encoding="utf-8", quoting=csv.QUOTE_ALL)


def as_json(path: Path) -> None:
    path.write_text(json.dumps(frame().to_dict("records"), indent=4, ensure_ascii=False))


@pytest.mark.parametrize(("name", "write"), [("a.xlsx", as_xlsx), ("a.tsv", as_tsv), ("a.json", as_json)])
def test_a_file_as_vlmevalkit_dumps_it(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    """By the calls of its `dump`; the answer "None" is four letters and not a missing cell."""
    write(tmp_path / name)
    answers = results.read(tmp_path / name)
    assert [a.text for a in answers] == ["Yes.", "", "", "None"]
    assert [bool(a.failed) for a in answers] == [False, True, False, False]
    predictions, how = results.match(answers, QUESTIONS, name)
    assert how == "by id"
    assert [p.id for p in predictions] == ["q0", "q1", "q2", "q3"]


def test_numbers_of_rows_that_look_like_ids_are_not_taken_for_them() -> None:
    """Question "1" of this benchmark is not row 1 of their file."""
    ours = [Question(str(i), "", text, "", False) for i, text in enumerate(("Which organ?", "Which side?", "Where?"))]
    theirs = [Answer((str(n),), f"about {i}", asked=f"{ours[i].question} Be brief.") for n, i in enumerate((1, 2, 0))]
    predictions, how = results.match(theirs, ours, "f")
    assert how.startswith("by the text")
    assert [p.text for p in predictions] == ["about 0", "about 1", "about 2"]
    predictions, how = results.match([Answer((str(n),), str(n), asked=ours[n].question) for n in (2, 0, 1)], ours, "f")
    assert how == "by id"
    assert [p.text for p in predictions] == ["0", "1", "2"]
    predictions, how = results.match(
        [Answer((str(n + 5),), str(n), asked=ours[n].question) for n in range(3)], ours, "f"
    )
    assert how.startswith("by order")
    assert [p.text for p in predictions] == ["0", "1", "2"]


def test_rows_that_cannot_be_told_apart_are_refused() -> None:
    ours = [Question(f"q{i}", f"{i}.png", "Is there a nodule?", "yes", True) for i in range(2)]
    with pytest.raises(InputError, match="cannot be matched"):
        results.match([Answer((str(i),), "no", asked="Another question") for i in range(2)], ours, "f")
    with pytest.raises(InputError, match="1 answers, but the benchmark has 2 questions"):
        results.match([Answer(("q0",), "no")], ours, "f")
    named = [Answer(("8",), "one", asked=ours[1].question, shown=("1.png",)),
             Answer(("9",), "zero", asked=ours[0].question, shown=("0.png",))]  # fmt: skip
    assert [p.text for p in results.match(named, ours, "f")[0]] == ["zero", "one"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.pkl", "", "a pickle"),
        ("a.jsonl", "", "no rows"),
        ("a.jsonl", '{"id": 1}\n', "row 1: no answer or no id"),
        ("a.xlsx", "not a zip", "not a sheet that can be read"),
    ],
)
def test_a_file_that_is_none_of_these_says_so(tmp_path: Path, name: str, text: str, said: str) -> None:
    if name.endswith("xlsx"):
        pytest.importorskip("openpyxl")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        results.read(tmp_path / name)


def test_a_sheet_without_openpyxl_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"llavamed\[harness\].*PRED_FORMAT=tsv"):
        results.read(tmp_path / "a.xlsx")


def test_json_lines_under_the_name_json_are_read(tmp_path: Path) -> None:
    """As LLaVA-Med's answers to its visual chat are named."""
    lines(tmp_path / "a.json", [{"question_id": 0, "text": "x"}, {"question_id": 1, "text": "y"}])
    assert [(a.ids, a.text) for a in results.read(tmp_path / "a.json")] == [(("0",), "x"), (("1",), "y")]


def test_answers_by_id_tell_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"id": i, "text": "x"} for i in (1, 1, 9)])
    with pytest.raises(InputError, match=r"1 missing ids \(first: 2\); 1 repeated ids \(first: 1\); 1 unknown ids"):
        results.by_id(path, ["1", "2"])


def test_the_command_writes_predictions_that_score_reads(
    colours: Path, tmp_path: Path, llavamed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (colours / "questions.jsonl").read_text().splitlines()]
    theirs = [
        {"doc_id": n, "filtered_resps": row["answer"], "target": "", "input": f"{row['question']}\nBriefly.",
         "input_media": [f"images/{row['image']}"]}
        for n, row in enumerate(reversed(rows))
    ]  # fmt: skip
    source = lines(tmp_path / "x_samples_colours.jsonl", theirs)

    def run(*arguments: object) -> None:
        assert llavamed(*arguments) == 0, capsys.readouterr().err

    out = tmp_path / "new" / "p.jsonl"
    run("eval", "import", source, "--benchmark", "phantom", "--data", colours, "--out", out, "--json")
    assert json.loads(capsys.readouterr().out)[0]["answers"] == 54
    run("score", "phantom", out, "--data", colours, "--out", tmp_path / "s", "--json")
    assert json.loads(capsys.readouterr().out)["scores"]["closed_accuracy"]["value"] == 100


def test_matching_by_text_is_that_of_trying_every_question_on_every_answer() -> None:
    """The rule as it reads: of the questions that occur in what was asked, on an image that was shown, the longest."""

    def slowly(answers: list[Answer], questions: list[Question]) -> list[Answer] | None:
        found: dict[int, Answer] = {}
        for answer in answers:
            fits = [i for i, question in enumerate(questions) if question.question and results._agree(answer, question)]
            longest = max((len(results._plain(questions[i].question)) for i in fits), default=0)
            fits = [i for i in fits if len(results._plain(questions[i].question)) == longest]
            if len(fits) != 1 or fits[0] in found:
                return None
            found[fits[0]] = answer
        return [found[i] for i in range(len(questions))]

    draw = random.Random(5)
    words = ["is", "it", "a", "ct", "scan", "there", "nodule", "lung", "left"]
    matched = 0
    for _ in range(300):
        questions = [
            Question(str(i), f"{draw.randint(0, 3)}.png", " ".join(draw.choices(words, k=draw.randint(1, 5))), "", True)
            for i in range(draw.randint(1, 8))
        ]
        answers = [
            Answer((f"x{i}",), "", shown=draw.choice([(), (q.image,), (q.image,), (q.image,)]),
                   asked=f"{draw.choice(['', 'Look. '])}{q.question.upper()}\n{draw.choice(['', 'Say a CT'])}")
            for i, q in enumerate(questions)
        ]  # fmt: skip
        draw.shuffle(answers)
        expected = slowly(answers, questions)
        assert results._by_text(answers, questions) == expected
        matched += expected is not None
    assert 50 < matched < 300


def test_thousands_of_answers_are_matched_by_text_without_trying_every_question_on_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(results, "_agree", lambda *_: pytest.fail("every pair is looked at"))
    questions = [Question(str(i), f"{i}.png", f"Is there a nodule {i} in the image?", "", True) for i in range(5_000)]
    answers = [Answer(("-",), "", asked=f"{q.question}\nAnswer briefly.", shown=(q.image,)) for q in questions[::-1]]
    assert results._by_text(answers, questions) == answers[::-1]
