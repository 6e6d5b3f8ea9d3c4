"""Answer files as the official repositories write them, and bad ones, all the way through the command line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llavamed.evaluate import benchmarks, show
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.score import MAX_ANSWER, score
from llavamed.records import Question

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(llavamed: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Command:
    """`llavamed ...` as it is typed: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = llavamed(*arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def llava(question: Question, id: object) -> dict[str, Any]:
    """A row of LLaVA's and LLaVA-Med's `model_vqa.py`."""
    return {
        "question_id": id,
        "prompt": f"{question.question}\nAnswer the question using a single word or phrase.",
        "text": question.answer,
        "answer_id": "jRkKwnYN8aGKPALeTTYJKU",
        "model_id": "llava-med",
        "metadata": {},
    }


def lines(rows: list[dict[str, Any]], end: str = "\n", **more: Any) -> str:
    return "".join(json.dumps(row, **more) + end for row in rows)


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# name -> (file, its text for the questions); each file holds the right answer to all
FORMS: dict[str, tuple[str, Callable[[list[Question]], str]]] = {
    "LLaVA's answers": ("a.jsonl", lambda qs: lines([llava(q, q.id) for q in qs])),
    "a mark before the first line, Windows' line ends, empty lines": (
        "a.jsonl",
        lambda qs: "\ufeff" + lines([llava(q, q.id) for q in qs], "\r\n\r\n") + "\r\n",
    ),
    "without a last line end": ("a.jsonl", lambda qs: lines([llava(q, q.id) for q in qs]).rstrip()),
    "numbered rows in the questions' order": ("a.jsonl", lambda qs: lines([llava(q, n) for n, q in enumerate(qs)])),
    "the same, named .json": ("a.json", lambda qs: lines([llava(q, n) for n, q in enumerate(qs)])),
    "the same, named .txt": ("a.txt", lambda qs: lines([llava(q, n) for n, q in enumerate(qs)])),
    "POPE's question and answer, without ids": (
        "a.jsonl",
        lambda qs: lines([{"question": q.question, "answer": f"{q.answer}."} for q in qs]),
    ),
    "a list in .json": ("a.json", lambda qs: json.dumps([llava(q, q.id) for q in qs], indent=2)),
    "a list in .jsonl": ("a.jsonl", lambda qs: json.dumps([llava(q, q.id) for q in qs])),
    "an object of id and answer": ("a.json", lambda qs: json.dumps({q.id: q.answer for q in qs})),
    "VQA's results": (
        "a.json",
        lambda qs: json.dumps([{"question_id": q.id, "answer": f" {q.answer}\n"} for q in qs]),
    ),
    "VQA-RAD's and SLAKE's qid": ("a.json", lambda qs: json.dumps([{"qid": q.id, "pred": q.answer} for q in qs])),
    "one answer in a list": ("a.jsonl", lambda qs: lines([{"id": q.id, "response": [q.answer]} for q in qs])),
    "a sheet's capitals": ("a.csv", lambda qs: table([{"ID": q.id, "Prediction": q.answer} for q in qs])),
    "VLMEvalKit's table, with the reference": (
        "a.tsv",
        lambda qs: table([{"index": q.id, "answer": "wrong", "prediction": q.answer} for q in qs], "\t"),
    ),
    "letters of every kind, escaped": (
        "a.jsonl",
        lambda qs: lines([{"id": q.id, "text": f"{q.answer}, \u2028 © 不 é \U0001fac0"} for q in qs]),
    ),
    "letters of every kind, not escaped": (
        "a.jsonl",
        lambda qs: lines([{"id": q.id, "text": f"{q.answer}, \u2028\x85 © 不 é 🫀"} for q in qs], ensure_ascii=False),
    ),
    "half an emoji": ("a.jsonl", lambda qs: lines([{"id": q.id, "text": f"{q.answer}, \ud83e"} for q in qs])),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_way_of_writing_the_right_answers_scores_100(
    form: str, command: Command, colours: Path, colour_benchmark: Benchmark, tmp_path: Path
) -> None:
    name, write = FORMS[form]
    (tmp_path / name).write_bytes(write(list(colour_benchmark.questions)).encode())
    code, _, err = command("score", "phantom", tmp_path / name, "--data", colours, "--out", tmp_path / "out")
    assert code == 0, err
    scores = show.read(tmp_path / "out")["scores"]
    assert scores["closed_accuracy"]["value"] == scores["closed_accuracy_official"]["value"] == 100
    assert scores["open_recall"]["value"] == scores["open_recall_official"]["value"] == 100
    assert ("matched by order" in err) == (form.startswith(("numbered", "the same", "POPE")))


@pytest.mark.parametrize("number", ["int", "text", "float"])
def test_an_id_is_the_same_as_a_number_and_as_text(
    number: str, command: Command, shared_data: Path, tmp_path: Path
) -> None:
    questions = benchmarks.load("vqa-rad", shared_data / "vqa_rad").questions
    as_written: Callable[[str], Any] = {"int": int, "text": str, "float": float}[number]
    rows = [{"question_id": as_written(q.id), "text": q.answer} for q in questions]
    (tmp_path / "a.jsonl").write_text(lines(rows[::-1]))
    code, _, err = command(
        "score", "vqa-rad", tmp_path / "a.jsonl", "--data", shared_data / "vqa_rad", "--out", tmp_path / "out"
    )
    assert (code, "by order" in err) == (0, False), err
    assert show.read(tmp_path / "out")["scores"]["open_exact"]["value"] == 100


def test_llava_meds_own_answer_files_are_matched_by_their_questions(
    command: Command, shared_data: Path, tmp_path: Path
) -> None:
    """Its repository's answer files number VQA-RAD's 451 test rows by a count of their own, which are other questions'
    ids here (13 is one), and put the options behind the question."""
    data = shared_data / "vqa_rad"
    questions = benchmarks.load("vqa-rad", data).questions
    rows = [
        {
            "question_id": 10 + number,
            "prompt": f"{q.question} Please choose from the following two options: [yes, no]",
            "text": "The study is normal" if q.closed else q.answer,
        }
        for number, q in enumerate(questions)
    ]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    asked = ("score", "vqa-rad", tmp_path / "a.jsonl", "--data", data, "--out", tmp_path / "out")
    code, _, err = command(*asked)
    assert code == 0, err
    assert "matched by order; its ids are not the benchmark's, but each row repeats its question" in err
    scores = show.read(tmp_path / "out")["scores"]
    no = sum(q.closed and q.answer.casefold() in ("no", "normal") for q in questions)
    assert scores["closed_accuracy_official"]["value"] == pytest.approx(100 * no / 272, abs=1e-3)
    assert scores["open_recall"]["value"] == 100

    (tmp_path / "a.jsonl").write_text(lines(rows[1:] + rows[:1]))
    code, _, err = command(*asked)
    assert (code, "missing ids" in err, "unknown ids" in err) == (2, True, True)
    code, _, err = command(*asked, "--by-order")
    assert code == 2
    assert "row 1 was asked 'Is there airspace consolidation on the left side?" in err
    (tmp_path / "a.jsonl").write_text(lines([*rows[:-1], rows[0]]))  # an id twice
    assert command(*asked)[0] == 2


def test_what_a_benchmarks_own_training_split_shows_is_said_with_the_score(
    command: Command, shared_data: Path, tmp_path: Path
) -> None:
    """All 203 images of VQA-RAD's test split are in its training split, and so are some of its questions."""
    data = shared_data / "vqa_rad"
    train, test = (benchmarks.load("vqa-rad", data, split) for split in ("train", "test"))
    asked = {(q.image, " ".join(q.question.casefold().split())) for q in train.questions}
    again = sum((q.image, " ".join(q.question.casefold().split())) in asked for q in test.questions)
    rows = [llava(q, q.id) for q in test.questions]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    code, out, err = command("score", "vqa-rad", tmp_path / "a.jsonl", "--data", data, "--out", tmp_path / "out")
    assert code == 0, err
    assert re.search(r"Seen in training: of 203 images 203 by name .*the benchmark's own training split, of 451", out)
    assert f"451 questions {again} are asked there on the same image in the same words." in " ".join(out.split())
    found = show.read(tmp_path / "out")["provenance"]["seen_in_training"]
    assert (found["test_images"], found["images_by_name"], found["same_image_and_question"]) == (203, 203, again)
    assert "Seen in training" in (tmp_path / "out" / "report.html").read_text()


def test_of_splits_in_folders_of_their_own_only_what_is_known_is_said(colour_benchmark: Benchmark) -> None:
    rows = [{"id": q.id, "text": q.answer} for q in colour_benchmark.questions]
    body = score(colour_benchmark, rows, bootstrap=10).to_json()
    assert not any("Seen in training" in line for line in show.notes(body))
    counts = {"test_images": 1200, "test_questions": 2000, "same_image_and_question": 3, "unreadable_images": 0}
    for more, told in (({}, "an unknown number"), ({"images_by_sha256": 0}, "0 by content")):
        body["provenance"]["seen_in_training"] = counts | more
        assert f"Seen in training: of 1,200 images {told} are in" in " ".join(show.notes(body))


# ---------------------------------------------------------------- what the rows say they were asked


WRAPPED: dict[str, Callable[[str], dict[str, Any]]] = {
    "an image before it": lambda q: {"prompt": f"<image>\n{q}"},
    "an image behind it": lambda q: {"question": f"{q}\n<image>"},
    "a suffix": lambda q: {"prompt": f"{q}\nAnswer with one word."},
    "options": lambda q: {"prompt": f"Question: {q}\nOptions:\nA. yes\nB. no\nAnswer with the letter."},
    "a chat template": lambda q: {"prompt": f"A chat between ... USER: <im_start><image><im_end>\n{q} ASSISTANT:"},
    "a chat's messages": lambda q: {"prompt": [{"role": "user", "content": f"<image>\n{q}"}]},
    "capitals, spaces and line ends": lambda q: {"question": f"  {q.upper()}".replace(" ", " \r\n ")},
    "without its question mark": lambda q: {"question": q.rstrip("?. ")},
    "a prompt that is the same for all": lambda q: {"prompt": "Answer in one word.", "question": q},
    "a cell that is empty": lambda q: {"question": None, "prompt": q},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_a_question_is_known_in_any_prompt_around_it(
    form: str, command: Command, shared_data: Path, tmp_path: Path
) -> None:
    data = shared_data / "vqa_rad"
    questions = benchmarks.load("vqa-rad", data).questions
    rows = [{"question_id": q.id, **WRAPPED[form](q.question), "text": q.answer} for q in questions]
    for row in rows[:40]:  # a few may be in other words
        row["question"] = row["prompt"] = "What do you see?"
    (tmp_path / "a.jsonl").write_text(lines(rows[::-1]))
    code, _, err = command("score", "vqa-rad", tmp_path / "a.jsonl", "--data", data, "--out", tmp_path / "out")
    assert code == 0, err


@pytest.mark.parametrize("other", ["another file's questions", "half of them another file's", "a unicorn"])
def test_popes_ids_do_not_hide_answers_to_another_of_its_files(
    other: str, command: Command, shared_data: Path, tmp_path: Path
) -> None:
    """Its three files all count from 1 to 3,000 and share the half that is answered yes."""
    data = shared_data / "pope"
    questions = benchmarks.load("pope", data, "random").questions
    rows = [llava(q, q.id) for q in questions]
    for row, q in zip(rows, questions, strict=True):
        if other == "a unicorn":
            row["prompt"] = "Is there a unicorn in the imange?"
        elif other.startswith("another") or q.answer == "no":
            row["prompt"] = row["prompt"].replace("in the im", "on the table in the im")
    (tmp_path / "a.jsonl").write_text(lines(rows))
    asked = ("score", "pope", tmp_path / "a.jsonl", "--data", data, "--split", "random", "--out", tmp_path / "out")
    code, _, err = command(*asked)
    assert (code, len(err.splitlines())) == (2, 1)
    assert re.search(r"id \d was asked 'Is there a .*but the question of pope random there is 'Is there a", err)
    assert "check --split and --data" in err
    assert "if they were asked the same in other words, take prompt and question out of the rows" in err
    for row in rows:  # as it says
        del row["prompt"]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    assert command(*asked)[0] == 0


def test_ids_of_another_count_are_told_by_the_questions(command: Command, shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "vqa_rad"
    questions = benchmarks.load("vqa-rad", data).questions
    ids = [q.id for q in questions]
    rows = [llava(q, id) for q, id in zip(questions, ids[100:] + ids[:100], strict=True)]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    asked = ("score", "vqa-rad", tmp_path / "a.jsonl", "--data", data, "--out", tmp_path / "out")
    code, _, err = command(*asked)
    assert (code, "each row repeats the question in its place: match with --by-order" in err) == (2, True)
    assert command(*asked, "--by-order")[0] == 0
    assert show.read(tmp_path / "out")["scores"]["open_exact"]["value"] == 100
    (tmp_path / "a.jsonl").write_text(lines(rows[::-1]))
    code, _, err = command(*asked)
    assert (code, "check --split and --data" in err) == (2, True)


CATEGORIES = ("random", "popular", "adversarial")
POPES: dict[str, Callable[[str, Question, int], dict[str, Any]]] = {
    "ids that count from 1 in each": lambda _, q, n: llava(q, n),
    "the same without prompts": lambda _, q, n: {"question_id": n, "text": q.answer},
    "the same, with the category": lambda category, q, n: {"question_id": n, "category": category, "text": q.answer},
    "ids of ours": lambda _, q, n: {"id": q.id, "text": q.answer},
    "POPE's own, without ids": lambda _, q, n: {"question": q.question, "answer": q.answer.title()},
}


@pytest.mark.parametrize("form", POPES)
@pytest.mark.parametrize("pieces", ["a file each", "one file"])
def test_popes_three_files_are_scored_together(form: str, pieces: str, command: Command, tmp_path: Path) -> None:
    """Half of the questions are asked in all three, and no two files have the same answers to the others."""
    data, answers = tmp_path / "data", tmp_path / "answers"
    data.mkdir()
    answers.mkdir()
    for shift, category in enumerate(CATEGORIES):
        rows = [
            {
                "question_id": n + 1,
                "image": f"{n // 2}.jpg",
                "text": f"Is there a {n if n % 2 else f'{category} {n}'} in the image?",
                "label": "no" if n % 2 == 0 or (n + shift) % 3 == 0 else "yes",
            }
            for n in range(24)
        ]
        (data / f"coco_pope_{category}.json").write_text(lines(rows))
    questions = benchmarks.load("pope", data).questions
    written = {c: [q for q in questions if q.groups["category"] == c] for c in CATEGORIES}
    rows_of = {c: [POPES[form](c, q, n) for n, q in enumerate(qs, 1)] for c, qs in written.items()}
    if pieces == "a file each":
        for category, rows in rows_of.items():
            (answers / f"coco_pope_{category}_answers.jsonl").write_text(lines(rows))
    else:
        (answers / "all.jsonl").write_text(lines([row for rows in rows_of.values() for row in rows]))
    told = pieces == "a file each" or "category" in form or "ours" in form or form.startswith("POPE")
    code, _, err = command("score", "pope", answers, "--data", data, "--out", tmp_path / "out")
    assert code == (0 if told else 2), err
    if told:
        scores = show.read(tmp_path / "out")["scores"]
        assert (scores["f1"]["value"], scores["f1_official"]["value"], scores["f1"]["n"]) == (100, 100, 72)
    else:
        assert "72 unknown ids" in err or "repeated ids" in err
        assert "--by-order" in err


# ---------------------------------------------------------------- bad input


NOTHING: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "NaN in a list": ("a.json", lambda rows: json.dumps([{**row, "text": float("nan")} for row in rows])),
    "NaN in JSON lines": ("a.jsonl", lambda rows: lines([{**row, "text": float("nan")} for row in rows])),
    "null": ("a.jsonl", lambda rows: lines([{**row, "text": None} for row in rows])),
    "null beside the reference": (
        "a.jsonl",
        lambda rows: lines([{**row, "answer": row["text"], "text": None} for row in rows]),
    ),
    "null beside an empty column": (
        "a.jsonl",
        lambda rows: lines([{**row, "text": None, "pred": None} for row in rows]),
    ),
    "null in a list": ("a.jsonl", lambda rows: lines([{**row, "text": [None]} for row in rows])),
    "null under answer alone": (
        "a.json",
        lambda rows: json.dumps([{"id": row["question_id"], "answer": None} for row in rows]),
    ),
    "null by id": ("a.json", lambda rows: json.dumps({row["question_id"]: None for row in rows})),
}


@pytest.mark.parametrize("form", NOTHING)
def test_an_answer_that_is_null_or_nan_failed_and_is_wrong(
    form: str, command: Command, colours: Path, colour_benchmark: Benchmark, tmp_path: Path
) -> None:
    name, write = NOTHING[form]
    answers = tmp_path / "answers"
    answers.mkdir()
    rows = [llava(q, q.id) for q in colour_benchmark.questions]
    (answers / name).write_text(write(rows[:9]))
    (answers / f"b{Path(name).suffix}").write_text(lines([{**row, "failed": float("nan")} for row in rows[9:]]))
    code, _, err = command("score", "phantom", answers, "--data", colours, "--out", tmp_path / "out")
    assert code == 0, err
    body = show.read(tmp_path / "out")
    assert body["provenance"]["n_failed"] == 9
    assert (body["scores"]["open_exact"]["n"], body["scores"]["open_exact"]["value"]) == (
        18,
        pytest.approx(500 / 6, abs=1e-3),
    )
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert {(item["prediction"], item["failed"]) for item in items[:9]} == {("", "no answer in the file (null or NaN)")}
    assert not any(item["failed"] for item in items[9:])


def test_one_missing_id_is_named(command: Command, shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "vqa_rad"
    questions = benchmarks.load("vqa-rad", data).questions
    rows = [llava(q, q.id) for q in questions]
    lost = rows.pop(200)
    (tmp_path / "p.jsonl").write_text(lines(rows))
    code, _, err = command("score", "vqa-rad", tmp_path / "p.jsonl", "--data", data, "--out", tmp_path / "out")
    assert code == 2
    assert f"1 missing ids (first: {lost['question_id']}); vqa-rad test needs exactly one answer" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["conversations", "conversatons"])
def test_llava_meds_gold_file_is_read_with_its_key_misspelt_too(command: Command, key: str, tmp_path: Path) -> None:
    gold = [
        {
            "id": number,
            "image": "x.jpg",
            "answer_type": "CLOSED" if number % 2 else "OPEN",
            key: [
                {"from": "human", "value": f"What is {number}?\n<image>"},
                {"from": "gpt", "value": "yes" if number % 2 else "left lung"},
            ],
        }
        for number in range(12)
    ]
    (tmp_path / "test.json").write_text(json.dumps(gold))
    (tmp_path / "p.jsonl").write_text(lines([{"question_id": g["id"], "text": g[key][1]["value"]} for g in gold]))
    code, _, err = command(
        "score", "vqa-rad", tmp_path / "p.jsonl", "--data", tmp_path, "--out", tmp_path / "out", "--json"
    )
    assert code == 0, err
    scores = show.read(tmp_path / "out")["scores"]
    assert (scores["closed_accuracy"]["value"], scores["closed_accuracy"]["n"]) == (100, 6)
    assert (scores["open_recall_official"]["value"], scores["open_recall_official"]["n"]) == (100, 6)
    (tmp_path / "test.json").write_text(json.dumps(gold).replace(key, "conversation"))  # a third spelling is none
    code, _, err = command("score", "vqa-rad", tmp_path / "p.jsonl", "--data", tmp_path, "--out", tmp_path / "o")
    assert code == 2
    assert re.search(r"test\.json: row 0 has no 'answer'", err)


@pytest.mark.parametrize(
    ("asked", "folder", "told"),
    [
        ("slake", "vqa_rad", "looks like vqa-rad"),
        ("vqa-rad", "slake", "looks like slake"),
        ("pope", "mmmu", "looks like mmmu"),
        ("mmmu", "pope", "looks like pope"),
    ],
)
def test_a_folder_of_the_wrong_benchmark_is_recognised(
    command: Command, shared_data: Path, tmp_path: Path, asked: str, folder: str, told: str
) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": 1, "text": "yes"}\n')
    code, _, err = command("score", asked, tmp_path / "p.jsonl", "--data", shared_data / folder)
    assert code == 2
    assert told in err
    assert len(err.splitlines()) == 1


def test_an_answer_type_never_seen_is_told_with_its_row(command: Command, shared_data: Path, tmp_path: Path) -> None:
    rows = json.loads((shared_data / "vqa_rad" / "test.json").read_text())
    rows[7]["answer_type"] = "MULTIPLE"
    (tmp_path / "test.json").write_text(json.dumps(rows))
    (tmp_path / "p.jsonl").write_text(lines([{"id": row["qid"], "text": row["answer"]} for row in rows]))
    code, _, err = command("score", "vqa-rad", tmp_path / "p.jsonl", "--data", tmp_path)
    assert code == 2
    assert "test.json: row 7 has answer_type 'MULTIPLE'; it must be OPEN or CLOSED" in err


def test_an_answer_of_ten_megabytes_is_cut_and_counted(
    command: Command, colours: Path, colour_benchmark: Benchmark, tmp_path: Path
) -> None:
    rows = [{"id": q.id, "text": q.answer} for q in colour_benchmark.questions]
    rows[0]["text"] = "yes " * 2_500_000
    (tmp_path / "p.jsonl").write_text(lines(rows))
    code, out, err = command("score", "phantom", tmp_path / "p.jsonl", "--data", colours, "--out", tmp_path / "out")
    assert code == 0, err
    assert "1 cut for their length" in out
    body = show.read(tmp_path / "out")
    assert (body["provenance"]["n_cut"], body["n"]) == (1, 54)
    assert body["scores"]["closed_accuracy"]["value"] == 100
    assert (tmp_path / "out" / "items.jsonl").stat().st_size < 2 * MAX_ANSWER
    assert (tmp_path / "out" / "report.html").stat().st_size < 3_000_000
